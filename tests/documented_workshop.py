"""A place where each documented command runs once, made small, in a folder of its own that holds what the command names."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from documented import ROOT, documented_commands, sweep_jobs
from documented_inputs import FOLDERS, checkout, features, source_configuration
from omegaconf import DictConfig
from warm_commands import call

from mmexpert.command_line import composed, prepare_arguments

COMMANDS = documented_commands()
TRAIN = "python -m mmexpert.train"
CLIP_TOWERS = "encoder/image=clip encoder/text=clip model.projection_dim=512 optimizer.lr=1e-4"
CIRR = f"{TRAIN} experiment=cir_finetune dataset=cirr dataset.root=DIR {CLIP_TOWERS}"
COMBINER = f"{TRAIN} experiment=cir_combiner model.towers=outputs/cir_finetune/default"
FILMS = f"{TRAIN} experiment=hip dataset=image_folder dataset.root=DIR cv=stratified_group"
FILM_SWEEP = f"{TRAIN} -m experiment=hip loss=clip,superclip,superclip_token,siglip cv=stratified_group"
RUN = (  # sign of a command -> the command that has made its RUN
    ("mmexpert.submit", CIRR), ("dataset=cirr", CIRR), ("combiner=sum", COMBINER), ("run=RUN dataset.root", FILMS), ("mmexpert.cv", FILMS),
    ("images=DIR", f"{TRAIN} experiment=image_text"), ("evaluator.", f"{TRAIN} experiment=image_text"), ("", TRAIN),
)  # fmt: skip
STANDS_FOR = {  # folder that commands name -> what makes it, and where it lies below that
    "outputs/radar/default": (TRAIN, "outputs/*/*/"),
    "outputs/radar": (f"{TRAIN} -m loss=clip,siglip encoder/radar=conv1d,vit", "outputs/radar"),
    "outputs/cir_finetune/default": (f"{TRAIN} experiment=cir_finetune", "outputs/*/*/"),
    "outputs/cir_combiner/default": (COMBINER, "outputs/*/*/"),
    "outputs/image_text/trainer.epochs=8": (f"{TRAIN} experiment=image_text trainer.epochs=8", "outputs/*/*/"),
    "outputs/embed/mine": ("python -m mmexpert.embed run=outputs/radar/default clips=DIR name=mine", "outputs/embed/mine"),
    "outputs/embed/photos": ("python -m mmexpert.embed run=RUN images=DIR name=photos", "outputs/embed/photos"),
    "RUN_A": (FILM_SWEEP, "outputs/*/*/"),
    "RUN_B": (FILM_SWEEP, "outputs/*/*/"),
    "COMBINER_RUN": (COMBINER, "outputs/*/*/"),
    "SUM_RUN": ("python -m mmexpert.evaluate run=outputs/cir_combiner/default combiner=sum", "outputs/*/*/evaluate/*/"),
    "A.json": ("python -m mmexpert.submit run=RUN dataset.split=test1 name=mine", "RUN/submission/recall_submission_mine.json"),
    "B.json": ("python -m mmexpert.submit run=RUN dataset.split=test1 name=mine", "RUN/submission/recall_subset_submission_mine.json"),
}
MAKERS = {maker for _, maker in RUN} | {maker for maker, _ in STANDS_FOR.values()}
SMALLER = {  # programs with sizes of their own -> what makes them small
    "evaluator.folds_of": ["evaluator.folds_of=4"],
    "kill_campaign": ["--kills", "1", "--processes", "1"],
    "torture": ["--only", "flipped_bits"],
    "fuzz_readers": ["--minutes", "0.02"],
    "bench_all": ["--quick", "--rounds", "1", "--only", "bench_ranks"],
}
SIZES = {  # class of a part -> overrides
    "RadarSim": ["dataset.train=48", "dataset.valid=16", "dataset.test=16"],
    "HipPhantom": ["dataset.n_patients=160", "dataset.images_per_patient=1"],
    "Scenes": ["dataset.images={train:48,valid:16,test:16}"],
    "ComposedScenes": ["dataset.triplets={train:32,valid:8,test:8}"],
    "RadarConv1d": ["encoder.radar.width=16"],
    "RadarViT": ["encoder.radar.tower={depth:1,width:24,heads:3,dropout:0.0}"],
    "TimmImage": ["encoder.image.weights=null", "encoder.image.side=32"],
    "ClipImage": ["encoder.image.weights=CLIP", "encoder.image.side=32"],
    "ClipText": ["encoder.text.weights=CLIP", "encoder.text.max_length=20"],
    "TransformersText": ["encoder.text.name=BERT", "encoder.text.max_length=24"],
}  # fmt: skip
RESNET_CLIP = [
    "encoder.image.weights=null", "encoder.image.layers=1", "encoder.image.side=64", "encoder.text.weights=null", "encoder.text.layers=1",
]  # fmt: skip


@dataclass(frozen=True)
class Done:
    """A command that has run. fresh: the files that it has written, as they are called below folder."""

    folder: Path
    code: int
    output: str
    fresh: set[Path]

    def find(self, pattern: str) -> list[Path]:
        return sorted(path.relative_to(self.folder) for path in self.folder.glob(pattern) if path.relative_to(self.folder) in self.fresh)


class Workshop:
    """Runs each command once, in a folder of its own where what it names lies. towers: CLIP and BERT -> their stored folders."""

    def __init__(self, root: Path, towers: dict[str, Path]) -> None:
        self.root, self.towers, self.done = root, towers, {}
        checkout(root / "checkout")
        (root / "cache").mkdir()

    def ran(self, command: str) -> Done:
        """What the documented command has left."""
        small = self.shortened(COMMANDS[command])
        if (key := " ".join(small)) not in self.done:
            self.done[key] = self.run(command, small, self.root / f"{len(list(self.root.iterdir())):03d}")
        return self.done[key]

    def run(self, command: str, words: list[str], here: Path) -> Done:
        of_checkout = any(sign in command for sign in ("scripts/", "focal", "batch_hard", "theirpkg"))
        shutil.copytree(self.root / "checkout", here) if of_checkout else here.mkdir()
        (here / "outputs").mkdir()
        (here / "outputs/cache").symlink_to(self.root / "cache")
        self.lay(command, here)
        before, log = stamps(here), here / "console.txt"
        if words[:2] == ["python", "-m"] and not of_checkout:
            code = call(words[2], words[3:], here, log, seconds=600)
        else:
            code = launch(words, here, log, here if of_checkout else ROOT)
        after = stamps(here)
        for folder in list((here / "outputs").rglob("checkpoints")) if command not in MAKERS else ():
            shutil.rmtree(folder)  # gigabytes in all
        return Done(here, code, log.read_text(encoding="utf-8"), {path for path, stamp in after.items() if before.get(path) != stamp})

    def lay(self, command: str, here: Path) -> None:
        """Puts what the command names into the folder where it will run, and what those commands named that have made it."""
        if "--out DIR" not in command:
            self.lay_folder(command, here)
        if named("FILE.npz", command):
            features(here / "FILE.npz")
        if "import_superclip" in command:
            source_configuration(here / "FILE")
            source_configuration(here / "F")
        brought = {name: found for name, found in STANDS_FOR.items() if named(name, command)}
        if named("RUN", command):
            brought["RUN"] = next(maker for sign, maker in RUN if sign in command), "outputs/*/*/"
        for name, (maker, pattern) in brought.items():
            if not (here / name).exists():
                self.bring(maker, pattern, here / name)
                self.lay(maker, here)  # a stored run tells its towers and its data set as its command did

    def lay_folder(self, command: str, here: Path) -> None:
        """DIR, where the command names it: a link to a folder in the form of its data set."""
        if not named("DIR", command) or (here / "DIR").exists():
            return
        signs = {
            "group_from": "named_films",
            "group_column=null": "named_films",
            "layout=legacy": "legacy",
            "clips=": "radar_text",
            "images=": "image_text",
        }
        signs |= {f"dataset={kind}": kind for kind in FOLDERS} | {f"experiment={kind}": kind for kind in FOLDERS}
        kind = next((kind for sign, kind in signs.items() if sign in command), "image_folder")
        if not (self.root / kind).exists():
            FOLDERS[kind](self.root / kind)
        (here / "DIR").symlink_to(self.root / kind)

    def bring(self, maker: str, pattern: str, place: Path) -> None:
        """A copy of what another command has left, under the name by which this one calls it."""
        done = self.ran(maker)
        assert done.code == 0, done.output[-3000:]
        found = [path for path in sorted(done.folder.glob(pattern)) if path.parent.name != "cache"]
        source = found[-1] if place.name == "RUN_B" else found[0]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, place, dirs_exist_ok=True) if source.is_dir() else shutil.copy(source, place)

    def shortened(self, words: list[str]) -> list[str]:
        """The command with sizes at its end."""
        words = [word for word in words if word != "..."]
        text = " ".join(words)
        added = next((added for sign, added in SMALLER.items() if sign in text), [])
        if re.search(r"mmexpert\.(train|cv split)", text) and "--help" not in words:
            added = self.sizes(words)
        for name, folder in self.towers.items():
            added = [re.sub(f"={name}$", f"={folder}", word) for word in added]
        return [*words, *added]

    def sizes(self, words: list[str]) -> list[str]:
        """Overrides that make a training small: those that fit all jobs of a multirun."""
        overrides = [word for word in arguments_of(words) if not word.startswith(("trust=", "hydra.searchpath="))]
        overrides.append("hydra.searchpath=[" + ",".join(f"file://{self.root}/checkout/{name}conf" for name in ("", "theirpkg/")) + "]")
        jobs = [composed(*job) for job in sweep_jobs(prepare_arguments(overrides))]
        found = ["trainer.max_steps=2", "trainer.batch_size=8", "trainer.num_workers=0"]
        few = {"n_splits": 2, "inner_splits": 2, "inner_val": 0.5}
        found += [f"cv.{key}={value}" for key, value in few.items() if all(cfg.cv.method != "none" and cfg.cv.get(key) for cfg in jobs)]
        if "trainer.mixed_precision=fp16" in words:
            found.append("trainer.mixed_precision=bf16")  # a CPU is refused fp16
        if "encoder.image.name=RN" in " ".join(words):
            return found + RESNET_CLIP
        for part, sizes in SIZES.items():
            if all(part in large_parts(cfg) for cfg in jobs):
                found += sizes
        return found


def named(name: str, command: str) -> bool:
    """Whether a name stands in a command as a whole."""
    return re.search(rf"(?<![\w/]){re.escape(name)}(?![\w/.])", command) is not None


def large_parts(cfg: DictConfig) -> set[str]:
    """Class names of the data set and of the towers, but for those that are small and without stored weights already."""
    nodes = [node for node in (cfg.dataset, *cfg.encoder.values()) if node and node.get("weights", "stored") is not None]
    return {node._target_.rpartition(".")[2] for node in nodes}


def arguments_of(words: list[str]) -> list[str]:
    """The key=value words behind the module's name."""
    return [word for word in words[words.index("-m") + 2 :] if "=" in word]


def stamps(folder: Path) -> dict[Path, int]:
    """Each file below a folder and when it was written; links to folders are not followed."""
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def launch(words: list[str], here: Path, log: Path, package: Path) -> int:
    """The exit code of a command of the shell. package: where mmexpert is imported from."""
    variables = list(takewhile(lambda word: re.match("[A-Z_]+=", word), words))
    environment = os.environ | dict(word.split("=", 1) for word in variables) | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), environment["PATH"]))
    with log.open("w", encoding="utf-8") as out:
        return subprocess.run(
            words[len(variables) :], cwd=here, env=environment, stdout=out, stderr=subprocess.STDOUT, timeout=900
        ).returncode
