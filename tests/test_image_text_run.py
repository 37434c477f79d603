"""Pictures of the user's own, from an index file to a finished run and its predictions."""

import csv
import subprocess
import sys
from pathlib import Path

from warm_commands import warm_run

ROOT = Path(__file__).resolve().parents[1]


def test_pictures_of_an_index_file_train_and_are_ranked(tmp_path):
    made = [sys.executable, str(ROOT / "scripts/make_scenes.py"), "--out", str(tmp_path / "pictures"), "--images", "60", "--layout", "json"]
    subprocess.run(made, check=True, cwd=ROOT, capture_output=True, timeout=120)
    overrides = ["dataset=image_text", f"dataset.root={tmp_path / 'pictures'}", "encoder.image.side=32", "trainer.batch_size=16"]
    command = ["experiment=image_text", *overrides, "trainer.max_steps=2", "trainer.num_workers=0", "name=mine"]
    ended = warm_run("mmexpert.train", command, tmp_path)
    assert ended.returncode == 0, ended.stderr
    (predictions,) = (tmp_path / "outputs/mine").glob("*/predictions.csv")
    with predictions.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert rows and all(row["id"].startswith("images/") for row in rows), rows[:1]
