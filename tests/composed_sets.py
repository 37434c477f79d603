"""Tiny FashionIQ and CIRR folders with pictures, to be spoilt by tests; and the arguments of their data sets."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from mmexpert.data.padding import PaddedPicture

SIDE = 8


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def change_json(path: Path, change) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    write_json(path, content)


def write_picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (10, 12, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def write_fashion_iq(root: Path, categories=("dress", "shirt")) -> Path:
    """6 queries and 8 pictures a category and split; shirt shares its first picture with dress; odd pictures are PNG."""
    for c, category in enumerate(categories):
        for split in ("train", "val", "test"):
            names = [f"{split}{category}{i}" for i in range(8)]
            if c:
                names[0] = f"{split}{categories[0]}0"
            rows = []
            for i in range(6):
                rows.append({"candidate": names[i], "target": names[i + 1], "captions": [f"Is REDDER by {i}.", f"has {i} sleeves"]})
                if split == "test":
                    rows[-1].pop("target")
            write_json(root / "captions" / f"cap.{category}.{split}.json", rows)
            write_json(root / "image_splits" / f"split.{category}.{split}.json", names)
            for i, name in enumerate(names):
                write_picture(root / "images" / f"{name}.{'png' if i % 2 else 'jpg'}", i)
    return root


def write_cirr(root: Path, pictures: int = 60, queries: int = 6) -> Path:
    """Published layout: root/{train,dev,test1}/..., root/cirr/{captions,image_splits}."""
    for split, top in (("train", "train/3"), ("val", "dev"), ("test1", "test1")):
        names = [f"{split}-{i:03d}" for i in range(pictures)]
        rows = []
        for i in range(queries):
            members = names[i : i + 6]
            row = {"pairid": 100 + i, "reference": members[0], "target_hard": members[3], "caption": f"Make it {i} times larger."}
            rows.append(row | {"img_set": {"id": i, "members": members}, "target_soft": {}})
            if split == "test1":
                rows[-1].pop("target_hard")
        write_json(root / "cirr/captions" / f"cap.rc2.{split}.json", rows)
        write_json(root / "cirr/image_splits" / f"split.rc2.{split}.json", {name: f"./{top}/{name}.png" for name in names})
        for i, name in enumerate(names):
            write_picture(root / top / f"{name}.png", i)
    return root


def common(root: Path, tmp_path: Path, **changed) -> dict:
    given = {
        "root": str(root),
        "image_root": None,
        "split": None,
        "allow_missing": False,
        "missing_file": str(tmp_path / "missing_images.txt"),
        "transform": PaddedPicture("target", 1.25, SIDE, [0.5], [0.25]),
        "seed": 0,
    }
    return given | changed


def fashion_iq(root: Path, tmp_path: Path, **changed):
    from mmexpert.data.fashion_iq import FashionIQ

    return FashionIQ(**common(root, tmp_path, categories=["dress", "shirt"], gallery="split") | changed)


def cirr(root: Path, tmp_path: Path, **changed):
    from mmexpert.data.cirr import Cirr

    return Cirr(**common(root, tmp_path, **changed))
