"""What the placeholders of documented commands stand for, made small: folders of data, towers, files."""

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from clip_files import session_text, views_of, write_session, write_split, write_views
from composed_sets import write_cirr, write_fashion_iq
from documented import ROOT, files_of
from PIL import Image

sys.path.insert(0, str(ROOT / "scripts"))
import make_hip_phantom  # noqa: E402
import make_scenes  # noqa: E402


def films(root: Path) -> None:
    """image_folder: 96 drawn films of 96 patients, P0000_0.png ..., in class folders, with texts of the classes."""
    make_hip_phantom.write(root, ["n_patients=96", "images_per_patient=1", "simulator.side=32"])


def named_films(root: Path) -> None:
    """The same without metadata.csv: the patient stands in the file's name alone."""
    films(root)
    (root / "metadata.csv").unlink()


def pictures(root: Path) -> None:
    """image_text: 60 drawn scenes with five captions each in data.json, and Karpathy's form."""
    make_scenes.write_plain(root, 60, ["json"], captions=5, side=32, seed=0)
    rows = json.loads((root / "data.json").read_text(encoding="utf-8"))
    parts = ["train"] * 40 + ["val"] * 10 + ["test"] * 10
    told = [
        {
            "filename": Path(row["image_path"]).name,
            "filepath": "images",
            "split": part,
            "sentences": [{"raw": text} for text in row["caption"]],
        }
        for row, part in zip(rows, parts, strict=True)
    ]
    (root / "dataset_flickr30k.json").write_text(json.dumps({"images": told}), encoding="utf-8")


def radar_text(root: Path, layout: str = "folders") -> None:
    """radar_text: 92 clips in three split files, and in one. layout: of clip_files.write_views, or legacy, ID.npy [T, 128]."""
    root.mkdir()
    told = []
    for name, numbers in (("train.json", range(80)), ("val.json", range(80, 86)), ("test.json", range(86, 92))):
        rows = [{"filefolder": "clips", "fileindex": f"{n:06d}", "captions": [f"a person squats {n} times"]} for n in numbers]
        write_split(root, name, rows)
        told += rows
        for row in rows:
            views = views_of(int(row["fileindex"]))
            write_views(root / "clips", row["fileindex"], views, layout)
            if layout == "legacy":
                np.save(root / "clips" / f"{row['fileindex']}.npy", views["doppler_time"].T)
    write_split(root, "all.json", told)


def radhar(root: Path) -> None:
    """radhar: four sessions of each of five classes on two days, and a Test folder of a third day."""
    for label, name in enumerate(("boxing", "jack", "jump", "squats", "walk")):
        for take in range(5):
            part, day = ("Test", 2) if take == 4 else ("Train", take % 2)
            lines = session_text(80, 4, range=1.0 + label, intensity=20.0 + take, secs=1561686032 + 86400 * day)
            write_session(root / part / name / f"{name}_{take}.txt", lines)


def humanml3d(root: Path) -> None:
    """humanml3d: eight bodies that sway."""
    from motion_files import write_motion

    parts = {"train": [f"{n:06d}" for n in range(4)], "val": ["000004", "000005"], "test": ["000006", "000007"]}
    for part, names in parts.items():
        for name in names:
            write_motion(root, name, texts=f"a person sways {name}#a/DET#0.0#0.0\n")
        (root / f"{part}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")


def pairs(root: Path) -> None:
    """pairs.csv of docs/adding_parts.md."""
    root.mkdir()
    rows = [["file", "caption", "split"]]
    for number, split in enumerate(["train"] * 16 + ["valid"] * 8 + ["test"] * 8):
        Image.new("RGB", (20, 16), (7 * number, 100, 200)).save(root / f"{number}.png")
        rows.append([f"{number}.png", f"picture number {number}", split])
    with (root / "pairs.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


FOLDERS: dict[str, Callable[[Path], object]] = {
    "image_folder": films,
    "named_films": named_films,
    "image_text": pictures,
    "radar_text": radar_text,
    "legacy": lambda root: radar_text(root, "legacy"),
    "radhar": radhar,
    "humanml3d": humanml3d,
    "fashion_iq": lambda root: write_fashion_iq(root, ("dress", "shirt", "toptee")),
    "cirr": write_cirr,
    "pairs": pairs,
}
"""Name of a data set -> what writes a folder for it."""


def features(path: Path) -> None:
    """FILE.npz of docs/composed_retrieval.md, for either protocol."""
    rng, names = np.random.default_rng(0), np.array([f"n{i}" for i in range(60)])
    arrays = {"gallery": rng.normal(size=(60, 5)), "gallery_names": names, "text_features": rng.normal(size=(8, 5))}
    members = np.stack([np.roll(names, -i)[:6] for i in range(8)])
    np.savez(path, **arrays, references=names[:8], targets=names[1:9], members=members)


def source_configuration(path: Path) -> None:
    """A train_clip_config.json of the source, with the class texts that it names beside it."""
    texts = path.with_name("class_texts.json")
    texts.write_text("{}", encoding="utf-8")
    given = {"image_encoder_name": "resnet18", "text_encoder_name": "clip:ViT-B/32", "epochs": 1, "use_cv": True, "n_splits": 2}
    path.write_text(json.dumps([given | {"class_texts_file": texts.name}]), encoding="utf-8")


def checkout(folder: Path) -> None:
    """A copy of this checkout with the files that docs/adding_parts.md adds to it."""
    for name in ("mmexpert", "conf", "scripts", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "pictures"))
    for name, content in files_of((ROOT / "docs/adding_parts.md").read_text(encoding="utf-8")).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    for package in ("theirpkg", "theirpkg/conf"):
        (folder / package / "__init__.py").touch()
