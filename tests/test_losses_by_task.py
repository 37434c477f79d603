"""Every loss of conf/loss takes one step on every task, but for token losses of composed queries, which have no tokens and say so;
and what it is trained on is what is validated."""

import contextlib
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmexpert import build
from mmexpert.command_line import composed
from mmexpert.config import CONF_DIR, check
from mmexpert.evaluators.base import collect, part_losses

LOSSES = sorted(path.stem for path in Path(CONF_DIR, "loss").glob("*.yaml"))
SMALL = ["trainer.num_workers=0", "trainer.batch_size=16"]
TASKS = {
    "radar": ["dataset.train=32", "dataset.valid=4", "dataset.test=4", "dataset.workers=1"],
    "hip": ["dataset.n_patients=40"],
    "image_text": ["dataset.images={train: 32, valid: 4, test: 4}"],
    "cir_finetune": ["dataset.triplets={train: 32, valid: 4, test: 4}", "dataset.extra=1"],
}


@pytest.fixture(scope="module", params=TASKS)
def task(request, tmp_path_factory):
    """Name of a preset and its data, made once."""
    overrides = [f"experiment={request.param}", *SMALL, *TASKS[request.param], f"dataset.cache_dir={tmp_path_factory.mktemp('cache')}"]
    overrides = overrides if "cache_dir" in composed(f"experiment={request.param}")["dataset"] else overrides[:-1]
    return request.param, overrides, build.build_dataset(check(composed(*overrides)), ())


def validates_what_it_trains(objective, loaders, names):
    """Of twelve rows, told batch by batch and all at once: every term of training, its value, and the same total."""
    loaders.plan, whole = replace(loaders.plan, eval_batch_size=12), contextlib.nullcontext
    (batch,) = loaders.part("valid")
    with torch.no_grad():
        expected, _ = objective(batch)
    loaders.plan = replace(loaders.plan, eval_batch_size=5)
    got = part_losses(objective, collect(objective, loaders, SimpleNamespace(autocast=whole), "valid"), 12)
    for term in (term for term in names if term.startswith("loss_")):
        assert got[term] == pytest.approx(float(expected[term]), rel=1e-4, abs=1e-5), term


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_takes_a_step_on_a_task(task, loss):
    name, overrides, dataset = task
    cfg = check(composed(*overrides, f"loss={loss}"))
    train = [i for i, record in enumerate(dataset.records) if record.split == "train"] or list(range(len(dataset.records)))
    tokenizer = build.build_tokenizer(cfg, dataset.vocabulary_texts(train))
    classes = build.training_classes(dataset, train)
    torch.manual_seed(0)
    model = build.build_model(cfg, classes, tokenizer, ())
    objective = build.build_objective(cfg, model, tokenizer.corpus(dataset.training_texts(train)), ()).train()
    place = build.Placement(torch.device("cpu"), 0, 1)
    loaders = build.build_loaders(cfg, dataset, {"train": train, "valid": train[:12], "test": []}, tokenizer, 0, place)
    (batch,) = next(iter(loaders.train(1, 0)))
    if name == "cir_finetune" and loss in ("composite", "superclip_token"):
        with pytest.raises(KeyError, match="a composed query is one vector"):
            objective(batch)
        loaders.close()
        return
    losses, _ = objective(batch)
    losses["loss_total"].backward()
    if name != "cir_finetune":  # its evaluation is of queries
        validates_what_it_trains(objective.eval(), loaders, set(losses))
    loaders.close()
    assert all(math.isfinite(float(value.detach())) for value in losses.values())
    for tower, encoder in model.encoders.items():
        moved = [p for p in encoder.parameters() if p.grad is not None and bool(p.grad.abs().max() > 0)]
        assert moved, f"{name}: {loss} leaves the {tower} tower without a gradient"
