"""The composed model: one pass for both pictures, references as further columns, frozen towers; keys decide what is pushed away."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmexpert.encoders.image import ConvImage
from mmexpert.engine.objective import Objective
from mmexpert.engine.optim import parameter_groups
from mmexpert.losses.clip import ClipLoss
from mmexpert.losses.siglip import SigLipLoss
from mmexpert.models.combiner import GatedCombiner, SumCombiner
from mmexpert.models.composed import Composed
from mmexpert.types import ConfigError, Encoding

D = 8


class Tower(nn.Module):
    """A linear map with BatchNorm and dropout, whose calls are counted."""

    dim, lr_scale = D, 1.0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear, self.norm, self.drop, self.sizes = nn.Linear(width, D), nn.BatchNorm1d(D), nn.Dropout(0.5), []

    def forward(self, inputs):
        self.sizes.append(len(inputs))
        return Encoding(self.drop(self.norm(self.linear(inputs))))

    def frozen_modules(self):
        return []


class Rows(nn.Module):
    """A tower that gives its inputs back, so that a test sees the gradient of each feature."""

    dim, lr_scale = D, 1.0

    def forward(self, inputs):
        return Encoding(inputs)

    def frozen_modules(self):
        return []


def model(train_towers="both", reference_negatives=True, combiner=None, towers=None) -> Composed:
    torch.manual_seed(0)
    return Composed(D, train_towers, reference_negatives, None, towers or {"image": Tower(6), "text": Tower(5)}, combiner or SumCombiner())


def batch(rows=4, width=(6, 5)):
    generator = torch.Generator().manual_seed(1)
    return {
        "reference": torch.randn(rows, width[0], generator=generator),
        "target": torch.randn(rows, width[0], generator=generator),
        "text": torch.randn(rows, width[1], generator=generator),
        "positive_key": torch.arange(rows),
        "reference_key": torch.arange(rows) + 100,
        "id": torch.arange(rows),
    }


def test_reference_and_target_pass_the_tower_as_one_batch():
    composed = model()
    composed(batch())
    assert composed.encoders["image"].sizes == [8] and composed.encoders["text"].sizes == [4]


def test_references_stand_behind_the_targets_with_their_keys():
    composed = model(towers={"image": Rows(), "text": Rows()})
    rows = batch(3, (D, D))
    pair = composed(rows)
    torch.testing.assert_close(pair.target.features, torch.cat([rows["target"], rows["reference"]]))
    assert pair.target_key.tolist() == [0, 1, 2, 100, 101, 102]
    torch.testing.assert_close(pair.query.features, F.normalize(rows["reference"] + rows["text"], dim=1))
    plain = model(reference_negatives=False, towers={"image": Rows(), "text": Rows()})(rows)
    assert plain.target_key is None and len(plain.target.features) == 3


@pytest.mark.parametrize("train_towers", ["text", "image", "both", "none"])
def test_each_choice_of_towers_changes_exactly_those(train_towers):
    composed = model(train_towers, combiner=GatedCombiner(D, None, None, 0.0, None))
    objective = Objective(composed, ClipLoss(0.07, True, "out", "both"), None, None, 0.0, 0.0)
    before = {name: value.clone() for name, value in composed.state_dict().items()}
    optimizer = torch.optim.SGD(parameter_groups(objective, 0.1, 0.1))
    objective.train()
    for _ in range(2):
        objective(batch())[0]["loss_total"].backward()
        optimizer.step()
    changed = {name.rpartition("norm.")[0] or name for name, value in composed.state_dict().items() if not torch.equal(value, before[name])}
    learns = {"text": {"text"}, "image": {"image"}, "both": {"text", "image"}, "none": set()}[train_towers]
    towers = {name.split(".")[1] for name in changed if name.startswith("encoders.")}
    assert towers == learns
    assert {group["name"] for group in optimizer.param_groups} == learns | {"model", "loss"}
    assert {role: tower.training for role, tower in composed.encoders.items()} == {role: role in learns for role in ("image", "text")}


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_batchnorm_keeps_its_statistics_under_norm_frozen_alone(norm):
    image = ConvImage(dim=D, lr_scale=1.0, side=16, in_chans=3, mean=[0.5], std=[0.25], channels=[4, 4], freeze_backbone=False, norm=norm)
    composed = model(towers={"image": image, "text": Rows()})
    before = {name: value.clone() for name, value in image.named_buffers()}
    rows = batch(4, (6, D)) | {role: torch.randn(4, 3, 16, 16) for role in ("reference", "target")}
    objective = Objective(composed, ClipLoss(0.07, True, "out", "both"), None, None, 0.0, 0.0).train()
    objective(rows)[0]["loss_total"].backward()
    same = all(torch.equal(value, before[name]) for name, value in image.named_buffers())
    assert same == (norm == "frozen") and all(parameter.grad is not None for parameter in image.parameters())


def test_gallery_and_composition_are_the_two_halves_of_forward():
    composed = model(reference_negatives=False).eval()
    rows = batch()
    features = composed.encode_gallery({"image": rows["reference"]})
    torch.testing.assert_close(composed.compose(features, rows["text"]), composed(rows).query.features)
    torch.testing.assert_close(composed.encode_gallery({"image": rows["target"]}), composed(rows).target.features)


def test_what_is_missing_is_named():
    with pytest.raises(ConfigError, match="needs a tower for 'image'; towers: text"):
        model(towers={"text": Rows()})
    with pytest.raises(ConfigError, match="train_towers=all: choose one of text, image, both, none"):
        model("all")
    with pytest.raises(KeyError, match="batch has no 'reference_key'; it holds id, positive_key"):
        model()({name: x for name, x in batch().items() if name != "reference_key"})


LOSSES = {"clip": lambda: ClipLoss(0.1, False, "out", ["query_to_target"]), "siglip": lambda: SigLipLoss(0.1, False, -2.0, 1.0)}


def pulls(name, rows):
    """d loss / d cosine [B, 2 B] of each query with each column: below 0 the column is pulled, above 0 pushed.

    What autograd gives for column j is sum over i of that derivative times the part of query i that is tangent to target j; B
    independent queries in D > B dimensions give it back.
    """
    pair = model(towers={"image": Rows(), "text": Rows()})(rows)
    query, target = pair.query.features.detach(), pair.target.features.detach().requires_grad_()
    LOSSES[name]()(query, target, rows["positive_key"], pair.target_key)["loss_clip"].backward()
    columns = []
    for axis, length, gradient in zip(F.normalize(target.detach(), dim=1), target.detach().norm(dim=1), target.grad, strict=True):
        tangents = query - (query @ axis)[:, None] * axis
        columns.append(torch.linalg.lstsq(tangents.T.double(), (gradient * length).double()[:, None]).solution[:, 0])
    return torch.stack(columns, 1)


@pytest.mark.parametrize("name", LOSSES)
def test_equal_targets_are_pulled_by_one_anothers_queries_and_pushed_without_keys(name):
    rows = batch(4, (D, D))
    rows["target"][1] = rows["target"][0]
    rows["positive_key"] = torch.tensor([0, 0, 2, 3])
    found = pulls(name, rows)
    assert bool((found[:2, :2] < 0).all()) and bool((found[:2, 2:] > 0).all()) and bool((found[2:, :2] > 0).all())
    torch.testing.assert_close(found[[0, 1], [0, 1]], found[[0, 1], [1, 0]], rtol=1e-4, atol=1e-6)
    rows["positive_key"] = torch.arange(4)
    assert bool((pulls(name, rows)[[0, 1], [1, 0]] > 0).all()), "the fault that keys mend"


@pytest.mark.parametrize("name", LOSSES)
def test_a_reference_that_is_another_rows_target_is_pulled_by_that_row_and_pushed_by_the_rest(name):
    rows = batch(4, (D, D))
    rows["reference"][2] = rows["target"][0]
    rows["reference_key"] = torch.tensor([100, 101, 0, 103])
    column = pulls(name, rows)[:, 4 + 2]
    assert column[0] < 0 and bool((column[1:] > 0).all())
    rows["reference_key"] = torch.tensor([100, 101, 102, 103])
    assert pulls(name, rows)[0, 4 + 2] > 0, "the fault that keys mend"


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_over_targets_and_references_is_the_loop_over_all_columns(name):
    rows = batch(3, (D, D))
    rows["reference_key"] = torch.tensor([1, 101, 102])
    pair = model(towers={"image": Rows(), "text": Rows()})(rows)
    query, columns = F.normalize(pair.query.features, dim=1), F.normalize(torch.cat([rows["target"], rows["reference"]]), dim=1)
    positives = [{0}, {1, 3}, {2}]  # reference 0 is target 1
    total = 0.0
    for i, own in enumerate(positives):
        cosines = [float(query[i] @ column) for column in columns]
        if name == "clip":
            norm = math.log(sum(math.exp(10 * s) for s in cosines))
            total -= sum(10 * cosines[j] - norm for j in own) / len(own) / 3
        else:
            logits = [(10 * s - 2) * (1 if j in own else -1) for j, s in enumerate(cosines)]
            total += sum(math.log1p(math.exp(-z)) for z in logits) / 3
    loss = LOSSES[name]().eval()(pair.query.features, pair.target.features, rows["positive_key"], pair.target_key)
    assert float(loss["loss_clip"]) == pytest.approx(total, rel=1e-5)
