"""Every loss of conf/loss and every similarity take one step on every task, but for what needs tokens of composed queries, which have
none and say so; and what a loss is trained on is what is validated."""

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
from mmexpert.types import ConfigError

LOSSES = sorted(path.stem for path in Path(CONF_DIR, "loss").glob("*.yaml"))
SIMILARITIES = sorted(path.stem for path in Path(CONF_DIR, "similarity").glob("*.yaml") if path.stem != "none")
SMALL = ["trainer.num_workers=0", "trainer.batch_size=16"]
TASKS = {
    "radar": ["dataset.train=32", "dataset.valid=4", "dataset.test=4", "dataset.workers=1"],
    "hip": ["dataset.n_patients=40"],
    "image_text": ["dataset.images={train: 32, valid: 4, test: 4}"],
    "cir_finetune": ["dataset.triplets={train: 32, valid: 4, test: 4}", "dataset.extra=1"],
}
PATCHES = {  # the towers whose tokens are compared: image patches of a ViT, the grid of a ResNet, steps of time
    "radar": ["encoder.radar.width=16"],
    "hip": [],
    "image_text": [
        "encoder/image=timm", "encoder.image.name=test_vit", "encoder.image.weights=null", "encoder.image.side=32",
        "encoder.image.mean=[0.5]", "encoder.image.std=[0.25]",
    ],
}  # fmt: skip


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


@contextlib.contextmanager
def begun(task, *overrides):
    """The task's objective in training mode, under further overrides, its loaders and its first batch."""
    _, usual, dataset = task
    cfg = check(composed(*usual, *overrides))
    train = [i for i, record in enumerate(dataset.records) if record.split == "train"] or list(range(len(dataset.records)))
    tokenizer = build.build_tokenizer(cfg, dataset.vocabulary_texts(train))
    classes = build.training_classes(dataset, train)
    torch.manual_seed(0)
    model = build.build_model(cfg, classes, tokenizer, ())
    objective = build.build_objective(cfg, model, tokenizer.corpus(dataset.training_texts(train)), ()).train()
    place = build.Placement(torch.device("cpu"), 0, 1)
    loaders = build.build_loaders(cfg, dataset, {"train": train, "valid": train[:12], "test": []}, tokenizer, 0, place)
    (batch,) = next(iter(loaders.train(1, 0)))
    with contextlib.closing(loaders):
        yield objective, loaders, batch


def all_move(objective, what):
    """Each tower has a gradient, and every gradient is finite."""
    assert all(bool(p.grad.isfinite().all()) for p in objective.parameters() if p.grad is not None)
    for tower, encoder in objective.model.encoders.items():
        moved = [p for p in encoder.parameters() if p.grad is not None and bool(p.grad.abs().max() > 0)]
        assert moved, f"{what} leaves the {tower} tower without a gradient"


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_takes_a_step_on_a_task_and_is_validated_as_trained(task, loss):
    with begun(task, f"loss={loss}") as (objective, loaders, batch):
        if task[0] == "cir_finetune" and loss in ("composite", "superclip_token"):
            with pytest.raises(KeyError, match="a composed query is one vector"):
                objective(batch)
            return
        losses, _ = objective(batch)
        losses["loss_total"].backward()
        assert all(math.isfinite(float(value.detach())) for value in losses.values())
        all_move(objective, f"{task[0]}: {loss}")
        if task[0] != "cir_finetune":  # its evaluation is of queries
            validates_what_it_trains(objective.eval(), loaders, set(losses))


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_similarity_takes_a_step_on_a_task_that_has_tokens_and_alone_moves_both_towers(task, similarity):
    name = task[0]
    if name == "cir_finetune":
        with (
            pytest.raises(ConfigError, match="a composed query is one vector: choose similarity=none"),
            begun(task, f"similarity={similarity}"),
        ):
            pass
        return
    with begun(task, *PATCHES[name], f"similarity={similarity}") as (objective, _, batch):
        losses, pair = objective(batch)
        if name == "image_text":
            assert pair.query.sequence.shape[1] == 2 * 2  # patches of 16 x 16 pixels, no class token
        assert min(pair.query.sequence.shape[1], pair.target.sequence.shape[1]) > 1
        values = {key: float(value.detach()) for key, value in losses.items()}
        assert all(math.isfinite(value) for value in values.values())
        weighted = sum(weight * values[key] for key, weight in objective.loss.term_weights.items() if key in values)
        assert values["loss_seq"] > 0 and values["loss_total"] == pytest.approx(weighted + 0.5 * values["loss_seq"], rel=1e-5)
        losses["loss_seq"].backward(retain_graph=True)
        all_move(objective, f"{name}: {similarity}")
        assert all(p.grad is not None for p in objective.similarity.parameters())
        losses["loss_total"].backward()
        all_move(objective, f"{name}: {similarity} beside the pooled loss")
