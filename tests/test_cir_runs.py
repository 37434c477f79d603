"""Both stages of composed retrieval end to end on 300 triplets: towers, then the Combiner on their cached features, then its use."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import mmexpert
from mmexpert.command_line import composed
from mmexpert.config import check
from mmexpert.training import train_run
from mmexpert.types import ConfigError, RunFolderError

TRIPLETS = "dataset.triplets={train: 300, valid: 40, test: 40}"


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Overrides of every run here: small, in one process, with a cache of its own."""
    cache = tmp_path_factory.mktemp("cache")
    return [
        TRIPLETS,
        "dataset.extra=2",
        "trainer.num_workers=0",
        "trainer.batch_size=128",
        f"dataset.cache_dir={cache}",
        f"cache_dir={cache}",
    ]


def trained(folder: Path, *overrides: str) -> Path:
    train_run(check(composed(*overrides)), folder, list(overrides), ())
    return folder


@pytest.fixture(scope="module")
def stage_1(places, tmp_path_factory):
    """Two epochs of tuned towers."""
    return trained(tmp_path_factory.mktemp("outputs") / "cir_finetune", "experiment=cir_finetune", "trainer.epochs=2", *places)


def second(stage_1, places, *overrides):
    return ["experiment=cir_combiner", "trainer.epochs=3", f"model.towers={stage_1}", *places, *overrides]


@pytest.fixture(scope="module")
def stage_2(stage_1, places, tmp_path_factory):
    """Three epochs of the Combiner."""
    return trained(tmp_path_factory.mktemp("outputs") / "cir_combiner", *second(stage_1, places))


def metrics(run):
    return json.loads((run / "metrics.json").read_text())


def test_both_stages_write_the_figures_of_the_task(stage_1, stage_2):
    for run in (stage_1, stage_2):
        found = metrics(run)
        assert {"test/R@1", "test/R@50", "test/Rs@1", "test/average", "valid/average"} <= set(found)
        assert found["test/average"] == pytest.approx((found["test/R@5"] + found["test/Rs@1"]) / 2)


def test_the_rest_of_an_epoch_is_a_smaller_last_step(stage_1):
    assert json.loads((stage_1 / "status.json").read_text())["step"] == 2 * 3  # 128 + 128 + 44


def test_the_combiner_leaves_the_towers_as_they_were_and_the_model_holds_both(stage_1, stage_2):
    before, after = (load_file(run / "model" / "model.safetensors") for run in (stage_1, stage_2))
    towers = [name for name in before if name.startswith("model.encoders.")]
    assert towers and all(torch.equal(before[name], after[name]) for name in towers)
    assert {name.split(".")[1] for name in after} == {"encoders", "combiner"}


def test_the_loaded_model_composes_pictures_and_texts_as_the_evaluator_does(stage_2):
    model = mmexpert.load(stage_2, device="cpu")
    from mmexpert import build

    dataset = build.build_dataset(json.loads((stage_2 / "config.json").read_text())["config"])
    records = [dataset.records[i] for i in dataset.part("test")]
    pictures = dataset.pictures("test")
    tensors = lambda names: torch.from_numpy(np.stack([dataset.picture("test", name) for name in names]))  # noqa: E731
    query = model.compose(tensors([r.source.reference for r in records]), [r.source.text for r in records])
    torch.testing.assert_close(query.norm(dim=1), torch.ones(len(records)))
    names = list(pictures.ids)
    gallery = model.encode("image", tensors(names))
    hits = 0
    for row, record in enumerate(records):
        scores = query[row] @ gallery.T
        scores[names.index(record.source.reference)] = -2
        hits += names[int(scores.argmax())] == record.source.target
    assert 100 * hits / len(records) == pytest.approx(metrics(stage_2)["test/R@1"])
    picture = Image.new("RGB", (32, 32), "red")
    one = model.compose(picture, "is red")
    assert one.shape == (1, model.dim) and one.dtype == torch.float32
    with pytest.raises(TypeError, match="2 reference pictures and 1 texts"):
        model.compose([picture, picture], "is red")


def test_results_under_other_settings_lie_beside_each_other(stage_1, monkeypatch):
    from mmexpert import evaluate

    for combine in ("image", "text"):
        monkeypatch.setattr(sys, "argv", ["evaluate", f"run={stage_1}", f"evaluator.combine={combine}", "split=valid"])
        evaluate.application()
    stored = [json.loads((stage_1 / "evaluate" / f"valid,evaluator.combine={c}" / "metrics.json").read_text()) for c in ("image", "text")]
    assert [content["protocol"]["combiner"] for content in stored] == ["image", "text"]
    monkeypatch.setattr(sys, "argv", ["evaluate", f"run={stage_1}", "name=mine"])
    with pytest.raises(ConfigError, match="name= goes with features="):
        evaluate.application()


def test_evaluate_scores_the_same_towers_without_the_combiner(stage_1, stage_2):
    from mmexpert.evaluate import overridden, stored_run
    from mmexpert.scoring import evaluate_run

    again = next(iter(evaluate_run(stored_run(stage_2), stage_2, "test", "best", (), {}, "test").values()))
    assert again["R@1"] == metrics(stage_2)["test/R@1"]
    plain = overridden(stored_run(stage_2), ["combiner=sum"])
    alone = next(iter(evaluate_run(plain, stage_2, "test", "best", (), {}, "sum").values()))
    for name in ("R@1", "R@10", "Rs@2"):
        assert alone[name] == metrics(stage_1)[f"test/{name}"]  # stage 1 is the sum over these very towers


@pytest.mark.parametrize("stage", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stage_that_was_stopped_ends_with_the_same_bytes(stage, stage_1, stage_2, places, tmp_path, monkeypatch):
    whole = {1: stage_1, 2: stage_2}[stage]
    overrides = ["experiment=cir_finetune", "trainer.epochs=2", *places] if stage == 1 else second(stage_1, places)
    from mmexpert.engine.watch import Watch

    steps = []
    with monkeypatch.context() as stopped:
        agree = Watch.agree

        def stopping(self, gradients, progress):
            steps.append(1)
            if len(steps) == 5:  # inside an epoch of three steps
                raise KeyboardInterrupt
            return agree(self, gradients, progress)

        stopped.setattr(Watch, "agree", stopping)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            trained(tmp_path / "run", *overrides)
    run = trained(tmp_path / "run", *overrides)
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (whole, run))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_towers_that_do_not_fit_are_told_before_training(stage_1, places, tmp_path):
    with pytest.raises(RunFolderError, match=r"model.towers=nowhere: no model/"):
        trained(tmp_path / "a", *second("nowhere", places))
    with pytest.raises(ConfigError, match=r"encoder.image.channels=\[8, 8, 8\], but model.towers=.* has \[32, 64, 96\]"):
        trained(tmp_path / "b", *second(stage_1, places, "encoder.image.channels=[8,8,8]"))


def test_constant_features_find_nothing_and_one_picture_is_everybodys_first(stage_2, monkeypatch):
    from mmexpert.evaluate import stored_run
    from mmexpert.models.composed import Composed
    from mmexpert.scoring import evaluate_run

    flat = lambda rows: torch.ones(rows, 128)  # noqa: E731
    monkeypatch.setattr(Composed, "encode_gallery", lambda self, batch: flat(len(batch["image"])))
    monkeypatch.setattr(Composed, "compose", lambda self, reference, text: flat(len(reference)))
    found = next(iter(evaluate_run(stored_run(stage_2), stage_2, "valid", "best", (), {}, "valid").values()))
    assert found["R@1"] == 0 and found["Rs@3"] == 0
    assert found["hub_share"] == 1
