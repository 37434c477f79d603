"""The names of what each preset logs and reports, against a stored list: tests/logged_keys/PRESET.txt, "file key" a line.

Readers of these files (plots, reports, sweeps, a user's own scripts) ask for figures by name, so a name that comes, goes or changes is a
change that users see: edit the list with it, and CHANGELOG.md.
"""

import json
from pathlib import Path

import pytest
from documented_inputs import FOLDERS
from warm_commands import warm_run

from mmexpert.config import CONF_DIR

ROOT = Path(__file__).resolve().parent
LISTS = ROOT / "logged_keys"
PRESETS = sorted(path.stem for path in Path(CONF_DIR, "experiment").glob("*.yaml"))
FAST = ("hip", "radar")
VALUE_DECIDES = ("_lo", "_hi")  # bounds are left out where they have no width
SMALL = ["trainer.max_steps=2", "trainer.device=cpu", "trainer.log_every=1", "trainer.num_workers=0", "trainer.batch_size=8", "tracker=csv"]
CLIPS = ["dataset.train=24", "dataset.valid=16", "dataset.test=16", "dataset.workers=1", "dataset.cache_dir=cache"]
TEXT = ["model.projection_dim=16", "encoder.text.bert={width:16,layers:1,heads:2,feedforward:32,dropout:0.0}"]
CONV = ["encoder.radar.width=16", *TEXT]
VIT = ["encoder.radar.tower={depth:1,width:24,heads:3,dropout:0.0}", *TEXT]
TRIPLETS = ["dataset.triplets={train:32,valid:8,test:8}", "dataset.extra=1"]
FOLDS = ["cv.n_splits=2", "dataset.root=DIR"]
SIZES = {
    "cir_combiner": [*TRIPLETS, "model.towers=outputs/cir_finetune/it"],
    "cir_finetune": TRIPLETS,
    "hip": ["dataset.n_patients=80", "dataset.images_per_patient=1", *TEXT],
    "hip_superclip": [*FOLDS, "cv.inner_val=0.5", "encoder.image.weights=null", "encoder.text.weights=null", "encoder.text.layers=1"],
    "humanml3d": ["dataset.root=DIR", "trainer.val_every=1", "trainer.batch_size=4", "dataset.cache_dir=cache", *CONV],
    "image_text": ["dataset.images={train:32,valid:16,test:16}", *TEXT],
    "order_study": [*CLIPS, "similarity=combined", *CONV],
    "radar": [*CLIPS, *CONV],
    "radar_sequence": [*CLIPS, *VIT],
    "radhar": [*FOLDS, "dataset.window=20", "dataset.stride=20", *CONV],
}
DATA = {"hip_superclip": "image_folder", "humanml3d": "humanml3d", "radhar": "radhar"}


def ran(folder: Path, preset: str) -> Path:
    """A tiny run of the preset, finished."""
    if preset == "cir_combiner":
        ran(folder, "cir_finetune")
    if preset in DATA:
        FOLDERS[DATA[preset]](folder / "DIR")
    run = folder / "outputs" / preset / "it"
    ended = warm_run("mmexpert.train", [f"experiment={preset}", *SMALL, *SIZES[preset], f"hydra.run.dir={run}"], folder)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return run


def keys_of(run: Path) -> list[str]:
    """ "file key" of all numbers that the run tells by name; folds tell the same ones, and stand as fold_N."""
    found = set()
    for path in sorted(run.rglob("*.json*")):
        name = path.name if path.parent == run else f"fold_N/{path.name}"
        if path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        elif path.name in ("metrics.json", "training_results.json", "cv_summary.json") and "evaluate" not in path.parts:
            content = json.loads(path.read_text(encoding="utf-8"))
            rows = [content] if path.name != "cv_summary.json" else [content["metrics"]]
        else:
            continue
        found |= {f"{name} {key}" for row in rows for key in row}
        if path.name == "metrics.json":
            found |= {f"{name} protocol.{part}.{key}" for part, told in rows[0]["protocol"].items() for key in told}
    return sorted(line for line in found if not line.endswith(VALUE_DECIDES))


def test_each_preset_has_its_list():
    assert sorted(path.stem for path in LISTS.glob("*.txt")) == PRESETS == sorted(SIZES)
    for path in LISTS.glob("*.txt"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines == sorted(set(lines)) and len(lines) > 60, path


@pytest.mark.parametrize("preset", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in PRESETS])
def test_a_preset_logs_and_reports_the_keys_of_its_list(preset, tmp_path):
    stored = (LISTS / f"{preset}.txt").read_text(encoding="utf-8").splitlines()
    found = keys_of(ran(tmp_path, preset))
    assert {"new": sorted(set(found) - set(stored)), "gone": sorted(set(stored) - set(found))} == {"new": [], "gone": []}
