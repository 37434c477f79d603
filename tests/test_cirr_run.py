"""A CIRR folder from training to the server's files: val files say what evaluate says, the checker passes both."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from composed_sets import write_cirr
from omegaconf import OmegaConf
from torch import nn
from warm_commands import warm_run

from mmexpert import submitting
from mmexpert.command_line import composed
from mmexpert.types import RunFolderError

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["encoder.image.side=16", "trainer.epochs=1", "trainer.batch_size=8", "trainer.num_workers=0", "trainer.device=cpu"]


def command(folder: Path, module: str, *arguments: str) -> subprocess.CompletedProcess:
    return warm_run(f"mmexpert.{module}", arguments, folder)


def test_a_run_that_composes_nothing_is_refused_before_a_picture_is_read(tmp_path, monkeypatch):
    root = write_cirr(tmp_path / "cirr_dataset", queries=3)
    cfg = composed("experiment=cir_finetune", "dataset=cirr", f"dataset.root={root}", "dataset.split=val")
    monkeypatch.setattr(submitting, "load", lambda *_: SimpleNamespace(model=nn.Identity(), tokenizer=None, device="cpu"))
    with pytest.raises(RunFolderError, match="an? Identity composes no queries: name a run of cir_finetune or cir_combiner"):
        submitting.submit(OmegaConf.to_container(cfg, resolve=True), tmp_path, "mine", ())


def test_val_files_of_a_run_reproduce_its_evaluation(tmp_path):
    root = write_cirr(tmp_path / "cirr_dataset", queries=10)
    done = command(tmp_path, "train", "experiment=cir_finetune", "dataset=cirr", f"dataset.root={root}", "name=cir", *SMALL)
    assert done.returncode == 0, done.stderr[-3000:]
    run = next((tmp_path / "outputs/cir").iterdir())
    metrics = json.loads((run / "metrics.json").read_text())
    done = command(tmp_path, "submit", f"run={run}", "dataset.split=val", "name=mine")
    assert done.returncode == 0, done.stderr[-3000:]
    files = [run / f"submission/{kind}_mine.json" for kind in ("recall_submission", "recall_subset_submission")]
    recall, subset = (json.loads(file.read_text()) for file in files)
    rows = json.loads((root / "cirr/captions/cap.rc2.val.json").read_text())
    for name, content, limits in (("R", recall, (1, 5, 10, 50)), ("Rs", subset, (1, 2, 3))):
        for k in limits:
            hits = sum(row["target_hard"] in content[str(row["pairid"])][:k] for row in rows)
            assert metrics[f"valid/{name}@{k}"] == pytest.approx(100 * hits / len(rows))
    done = command(tmp_path, "submit", f"check={files[0]},{files[1]}", f"run={run}", "dataset.split=val")
    assert done.returncode == 0 and "no fault, 10 queries" in done.stdout, done.stderr
    files[1].write_text(files[1].read_text().replace("rc2", "rc1"))
    done = command(tmp_path, "submit", f"check={files[1]}", f"run={run}", "dataset.split=val")
    assert done.returncode == 3 and "version is 'rc1'" in done.stderr
