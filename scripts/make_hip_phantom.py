"""Writes the embedded radiographs as files, for dataset=image_folder: class folders of PNG, metadata.csv and class_texts.json.

python scripts/make_hip_phantom.py --out DIR                                        # as dataset=hip_phantom has them
python scripts/make_hip_phantom.py --out DIR n_patients=100 simulator.side=224      # any key of conf/dataset/hip_phantom.yaml
"""

import argparse
import csv
import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

from mmexpert.command_line import composed, launch
from mmexpert.config import instantiate

COLUMNS = ("id", "file", "label", "group", "visit", "view", "side", "design", "severity", "true_label")


def write(out: Path, overrides: list[str]) -> int:
    """Number of films written below out. Raises ConfigError for a wrong key or value."""
    with tempfile.TemporaryDirectory() as cache:  # what is exported need not be kept twice
        given = [f"dataset.{override}" for override in [*overrides, f"cache_dir={cache}"]]
        dataset = instantiate(composed("dataset=hip_phantom", *given).dataset, "dataset")
    out.mkdir(parents=True, exist_ok=True)
    for name in dataset.classes.names:
        (out / name).mkdir()
    with (out / "metadata.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, COLUMNS)
        table.writeheader()
        for record, row in zip(dataset.records, dataset.rows, strict=True):
            file = f"{row['label']}/{row['id']}.png"
            Image.fromarray(dataset.films[record.source]).save(out / file)
            table.writerow(row | {"file": file})
    texts = dict(zip(dataset.classes.names, dataset.classes.texts, strict=True))
    (out / "class_texts.json").write_text(json.dumps(texts, indent=1) + "\n", encoding="utf-8")
    return len(dataset)


def main() -> None:
    """Reads the command line; refuses a folder that holds something."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="folder to write: absent or empty")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE of conf/dataset/hip_phantom.yaml")
    given = parser.parse_args()
    sys.argv[1:] = ["dataset=hip_phantom"]  # the option whose keys these are: a misspelt one is looked up in the command line
    if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())):
        sys.exit(f"--out {given.out}: it is not an empty folder; name another one, or empty it yourself")
    print(f"wrote {write(given.out, given.overrides)} films, metadata.csv and class_texts.json to {given.out}")


if __name__ == "__main__":
    launch(main, by_argparse=True)
