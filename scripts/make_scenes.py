"""Writes the embedded scenes as files, for dataset=image_text; composed scenes for dataset=cirr and dataset=fashion_iq.

python scripts/make_scenes.py --out DIR --images 100 --layout all           # data.json, .jsonl, .csv, .tsv, images/ and captions/
python scripts/make_scenes.py --out DIR --images 100 --task composed        # CIRR's layout: 100 triplets in each split
python scripts/make_scenes.py --out DIR --images 100 --task composed --captions 2   # FashionIQ's too, all of it category dress

With --layout all say which form is to be read: dataset.index=data.csv, or folders.
"""

import argparse
import csv
import io
import json
import sys
from pathlib import Path

from PIL import Image

from mmexpert.command_line import launch
from mmexpert.simulate.edits import ComposedSimulator, Triplet
from mmexpert.simulate.scenes import FORMS, SceneSimulator

LAYOUTS = ("json", "jsonl", "csv", "tsv", "folders")
EXTRA = 8  # gallery pictures for each query, as dataset=composed_scenes has
CIRR_SPLITS = {"train": "train", "val": "val", "test": "test1"}


def write_plain(out: Path, count: int, layouts: list[str], captions: int, side: int, seed: int) -> None:
    """Pictures with captions in the given layouts; no splits: image_text makes them by its hash rule."""
    simulator, records = SceneSimulator(side), []
    (out / "images").mkdir(parents=True)
    for number, told in enumerate(simulator.described(count, "train", seed)):
        name = f"{number:06d}"
        Image.fromarray(simulator.picture(told.scene, seed)).save(out / "images" / f"{name}.png")
        records.append({"image_path": f"images/{name}.png", "caption": list(told.captions[:captions])})
    if "json" in layouts:
        _write(out / "data.json", json.dumps(records, indent=1) + "\n")
    if "jsonl" in layouts:
        _write(out / "data.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    for layout, delimiter in (("csv", ","), ("tsv", "\t")):
        if layout in layouts:
            text = io.StringIO(newline="")
            table = csv.writer(text, delimiter=delimiter)
            table.writerow(("image_path", "caption"))
            table.writerows((record["image_path"], caption) for record in records for caption in record["caption"])
            _write(out / f"data.{layout}", text.getvalue())
    if "folders" in layouts:
        for record in records:
            _write(out / "captions" / f"{Path(record['image_path']).stem}.txt", "\n".join(record["caption"]) + "\n")


def write_composed(out: Path, count: int, captions: int, side: int, seed: int) -> None:
    """`count` triplets in each split in CIRR's layout, with two captions in FashionIQ's too; test has no targets."""
    simulator, pairid = ComposedSimulator(side), 0
    (out / "images").mkdir(parents=True)
    for split, cirr_split in CIRR_SPLITS.items():
        triplets = simulator.triplets(count, split, seed, EXTRA if split != "train" else 0)
        scenes = {simulator.name(scene): scene for triplet in triplets for scene in (*triplet.members, *triplet.extra)}
        for name, scene in scenes.items():
            Image.fromarray(simulator.picture(scene, seed)).save(out / "images" / f"{name}.png")
        paths = {name: f"./images/{name}.png" for name in sorted(scenes)}
        rows = [_cirr_row(simulator, triplet, pairid + i, split) for i, triplet in enumerate(triplets)]
        pairid += len(rows)
        _write(out / "image_splits" / f"split.rc2.{cirr_split}.json", json.dumps(paths, indent=1))
        _write(out / "captions" / f"cap.rc2.{cirr_split}.json", json.dumps(rows, indent=1))
        if captions == 2:
            pairs = [_fashion_row(simulator, triplet, split) for triplet in triplets]
            _write(out / "image_splits" / f"split.dress.{split}.json", json.dumps(sorted(scenes), indent=1))
            _write(out / "captions" / f"cap.dress.{split}.json", json.dumps(pairs, indent=1))


def _cirr_row(simulator: ComposedSimulator, triplet: Triplet, pairid: int, split: str) -> dict[str, object]:
    row = {
        "pairid": pairid,
        "reference": simulator.name(triplet.reference),
        "target_hard": simulator.name(triplet.target),
        "caption": triplet.edit.texts()[0],
        "img_set": {"members": sorted(simulator.name(scene) for scene in triplet.members)},
    }
    return row if split != "test" else {key: value for key, value in row.items() if key != "target_hard"}


def _fashion_row(simulator: ComposedSimulator, triplet: Triplet, split: str) -> dict[str, object]:
    row: dict[str, object] = {"candidate": simulator.name(triplet.reference), "captions": list(triplet.edit.texts())}
    return row if split == "test" else row | {"target": simulator.name(triplet.target)}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        stream.write(text)


def main() -> None:
    """Reads the command line; refuses a folder that holds something."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="folder to write: absent or empty")
    parser.add_argument("--images", required=True, type=int, help="pictures; with --task composed triplets of each split")
    parser.add_argument("--task", choices=("plain", "composed"), default="plain")
    parser.add_argument("--layout", choices=(*LAYOUTS, "all"), default="json", help="of plain scenes")
    parser.add_argument("--captions", type=int, help="a picture: 1..5 (5); composed: 1 or 2 (1)")
    parser.add_argument("--side", type=int, default=32, help="pixels, 16 or more")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())):
        sys.exit(f"--out {given.out}: it is not an empty folder; name another one, or empty it yourself")
    most = len(FORMS) if given.task == "plain" else 2
    captions = (most if given.task == "plain" else 1) if given.captions is None else given.captions
    if given.images < 1 or not 1 <= captions <= most:
        sys.exit(f"--images is 1 or more, --captions 1..{most} with --task {given.task}")
    if given.task == "plain":
        write_plain(given.out, given.images, list(LAYOUTS) if given.layout == "all" else [given.layout], captions, given.side, given.seed)
        print(f"wrote {given.images} pictures with {captions} captions each to {given.out}")
    else:
        write_composed(given.out, given.images, captions, given.side, given.seed)
        print(f"wrote {given.images} triplets of each split to {given.out}")


if __name__ == "__main__":
    launch(main, by_argparse=True)
