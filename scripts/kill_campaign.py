"""SIGKILL at each phase of a save and at random moments, by one process and by two; the run must end as if never touched.

Compared: weights of every kept checkpoint, history (times aside), best list, metrics, predictions, cv_summary.json. The last line reads
`N kills, 0 mismatches`. The run that is never touched is started anew by Python; the others are forks (scripts/forked_runs.py).

    python scripts/kill_campaign.py                            # radar, 1 and 2 processes: every phase and 10 random moments each
    python scripts/kill_campaign.py --tasks radar hip cir      # three folds of hip, the Combiner of composed retrieval
    python scripts/kill_campaign.py --kills 100                # random moments per task and number of processes
    python scripts/kill_campaign.py --all-options              # one kill for every option of the groups that change what is learned
    python scripts/kill_campaign.py --all-options --only trainer.    # of them those with these letters
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import forked_runs
from forked_runs import Child

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("rng", "model", "state", "manifest", "rename", "links", "prune")
OPTION_GROUPS = ("encoder/radar", "encoder/radar/fusion", "loss", "similarity", "optimizer", "scheduler")
WAYS = (  # to compute the same, some together
    "trainer.accumulation=2 trainer.accumulate=features dataset.pack=f16 trainer.loss_tile=store",
    "trainer.accumulation=2 trainer.accumulate=features similarity=combined",
    "trainer.loss_tile=recompute dataset.pack=f32",
    "loss=siglip trainer.loss_tile=store trainer.mixed_precision=bf16",
    "encoder/radar=vit encoder.radar.tower.depth=2 encoder.radar.tower.width=24 trainer.grad_checkpointing=true",
)


@dataclass(frozen=True)
class Task:
    """overrides of a small run; steps: of it or of a fold; per_epoch: of them. towers: overrides of the run that it builds upon."""

    overrides: tuple[str, ...]
    steps: int
    per_epoch: int
    towers: tuple[str, ...] = ()


_SAVES = ("trainer.save_every_steps=1", "trainer.save_top_k=2")
_SCENES = ("dataset.triplets={train: 128, valid: 24, test: 24}", "dataset.extra=2", "trainer.batch_size=32", "trainer.num_workers=0")
RADAR = (
    "dataset.train=96", "dataset.valid=32", "dataset.test=32", "trainer.batch_size=16", "encoder.radar.width=16",
    "model.projection_dim=32", "encoder.text.bert.width=32",
)  # fmt: skip
TASKS = {
    "radar": Task(
        (*RADAR, *_SAVES, "trainer.epochs=4", "trainer.num_workers=2", "trainer.early_stopping.patience=3",
         "encoder/radar/fusion=concat", "encoder.radar.fusion.view_dropout=0.3"), 24, 6,
    ),
    "hip": Task(
        ("experiment=hip", "cv=stratified_group", "cv.n_splits=3", "cv.small_classes=allow", "dataset.n_patients=60", *_SAVES,
         "dataset.images_per_patient=1", "dataset.augmentation=light", "evaluator.linear_probe=[]", "trainer.batch_size=16",
         "trainer.epochs=3", "trainer.num_workers=0"), 6, 2,
    ),
    "cir": Task(
        ("experiment=cir_combiner", *_SCENES, *_SAVES, "trainer.epochs=4"), 16, 4,
        ("experiment=cir_finetune", *_SCENES, "trainer.epochs=1"),
    ),
}  # fmt: skip


class Campaign:
    """Starts, kills and compares runs of one task and number of processes."""

    def __init__(self, folder: Path, task: Task, processes: int, seed: int, cold: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.task, self.processes = folder, task, processes
        self.rng = random.Random(f"{seed} {processes}")
        self.kills = self.mismatches = 0
        self.overrides = list(task.overrides)
        if task.towers:
            forked_runs.train(folder, [*task.towers, "name=towers"]).wait()
            self.overrides.append(f"model.towers={next((folder / 'outputs' / 'towers').iterdir())}")
        if cold and processes == 1:  # another hash seed, other addresses: nothing of them may matter
            self._cold("whole")
        self.expected = self.outcome(self.finish("whole"))
        began = time.monotonic()
        self.outcome(self.finish("warm"))
        self.duration = time.monotonic() - began

    def start(self, name: str, kill_at: str = "") -> list[Child]:
        """The run's processes; kill_at is phase:step."""
        return forked_runs.ranks(self.folder, [*self.overrides, f"name={name}"], self.processes, MMEXPERT_KILL_AT=kill_at)

    def wait(self, processes: list[Child], seconds: float = 600) -> bool:
        """True when all ended well; once one has died, or the time is up, the others are killed as well."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            codes = [process.poll() for process in processes]
            if all(code == 0 for code in codes):
                return True
            if any(code not in (None, 0) for code in codes):
                break
            time.sleep(0.02)
        for process in processes:
            process.kill()
            process.wait()
        return False

    def finish(self, name: str) -> Path:
        """Runs to the end. Exits 1 with the log's end where the run fails by itself."""
        if not self.wait(self.start(name)):
            sys.exit(f"{name} failed:\n" + (self.folder / "rank0.log").read_text()[-3000:])
        return next(path for path in (self.folder / "outputs" / name).iterdir() if path.is_dir())

    def compare(self, name: str) -> bool:
        """Finishes a run that was killed; whether it ended as the one that was not."""
        found = self.outcome(self.finish(name))
        differing = [key for key in self.expected if found.get(key) != self.expected[key]]
        self.mismatches += bool(differing)
        print(f"{self.processes} process(es), {name}: {'equal' if not differing else f'differs in {differing}'}", flush=True)
        return not differing

    def outcome(self, run: Path) -> dict[str, object]:
        """What must be the same: of the run, or of each of its folds and their summary."""
        folds = sorted(run.glob("fold_[0-9]*"))
        if not folds:
            return outcome(run)
        found: dict[str, object] = {f"{fold.name} {key}": value for fold in folds for key, value in outcome(fold).items()}
        summary = (run / "cv_summary.json").read_text().replace(f'"name": "{run.parent.name}"', "")
        return found | {"cv_summary.json": summary, "oof_predictions.csv": (run / "oof_predictions.csv").read_text()}

    def phases(self) -> None:
        """One run, killed in each phase of a save at ever later steps, mid-epoch and at epoch ends."""
        ends = [self.task.per_epoch, 2 * self.task.per_epoch]
        others = [step for step in range(1, self.task.steps) if step not in ends]
        steps = sorted([*self.rng.sample(others, min(len(PHASES) - 2, len(others))), *ends])[: len(PHASES)]
        for phase, step in zip(PHASES, steps, strict=False):
            died = not self.wait(self.start("phases", f"{phase}:{step}"))
            self.kills += died
            print(f"{self.processes} process(es): killed in phase {phase} of step {step}: {died}", flush=True)
        self.compare("phases")

    def moments(self, kills: int) -> None:
        """Runs killed at random moments between start and end, begun anew when one gets through."""
        done, number = 0, 0
        while done < kills:
            name = f"moments_{number}"
            died = True
            while died and done < kills:
                died = not self.wait(self.start(name), self.rng.uniform(0.2, 0.95) * self.duration)
                done += died
            self.compare(name)
            number += 1
        self.kills += done

    def _cold(self, name: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "mmexpert.train", *self.overrides, f"name={name}"]
        ended = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        if ended.returncode:
            sys.exit(f"{name} failed:\n{ended.stderr[-3000:]}")


def outcome(run: Path) -> dict[str, object]:
    """What two equal runs or folds share."""
    checkpoints = run / "checkpoints"
    kept = sorted(path for path in checkpoints.glob("*_*") if path.is_dir() and not path.is_symlink())
    history = [{key: value for key, value in row.items() if "time" not in key} for row in json.loads((run / "history.json").read_text())]
    predictions = run / "predictions.csv"
    return {
        "kept": [path.name for path in kept],
        "weights": {path.name: hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest() for path in kept},
        "links": {link: os.readlink(checkpoints / link) for link in ("last", "best")},
        "history": history,
        "metrics": json.loads((run / "metrics.json").read_text()),
        "predictions": predictions.read_text() if predictions.exists() else "",
    }


def options() -> list[str]:
    """`group=option` for every option that changes what the radar task learns, and WAYS."""
    from mmexpert.command_line import groups

    return [f"{group}={option}" for group in OPTION_GROUPS for option in groups()[group]] + list(WAYS)


def all_options(folder: Path, seed: int, only: str) -> tuple[int, int]:
    """(kills, mismatches) of one kill in mid-epoch for every option; an option that the task can not run is named and left out."""
    kills = mismatches = 0
    for number, option in enumerate(option for option in options() if only in option):
        own = [key for key in RADAR if not ("encoder/radar=" in option and key.startswith("encoder.radar."))]  # another tower's keys
        task = Task((*own, *_SAVES, "trainer.epochs=2", "trainer.num_workers=0", *option.split()), 12, 6)
        try:
            campaign = Campaign(folder / f"option_{number}", task, 1, seed, cold=False)
        except SystemExit as failed:
            print(f"{option}: not of this task: {str(failed).strip().splitlines()[-1][:150]}", flush=True)
            continue
        died = not campaign.wait(campaign.start("killed", f"rename:{campaign.rng.randint(2, 10)}"))
        kills, mismatches = kills + died, mismatches + (not campaign.compare("killed"))
        print(f"{option}: killed {died}", flush=True)
    return kills, mismatches


def main() -> None:
    """Runs the campaign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="random moments per task and number of processes")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tasks", nargs="+", default=["radar"], choices=TASKS)
    parser.add_argument("--all-options", action="store_true")
    parser.add_argument("--only", default="", help="with --all-options: those that hold this text")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    kills = mismatches = 0
    with tempfile.TemporaryDirectory() as folder:
        if given.all_options:
            kills, mismatches = all_options(Path(folder), given.seed, given.only)
        for task in given.tasks if not given.all_options else ():
            for processes in given.processes:
                print(f"{task}:", flush=True)
                campaign = Campaign(Path(folder) / task / str(processes), TASKS[task], processes, given.seed)
                campaign.phases()
                campaign.moments(given.kills)
                kills, mismatches = kills + campaign.kills, mismatches + campaign.mismatches
    print(f"{kills} kills, {mismatches} mismatches")
    sys.exit(bool(mismatches))


if __name__ == "__main__":
    main()
