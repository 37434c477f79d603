"""Losses in tiles against float64 autograd of the plain formula: values, every gradient, and what must stay as it was."""

import math

import pytest
import torch
from torch.nn import functional as F

from mmexpert.losses.clip import ClipLoss
from mmexpert.losses.siglip import SigLipLoss
from mmexpert.losses.tiled_sigmoid import softplus_
from mmexpert.losses.tiling import Tiling
from mmexpert.types import ConfigError

FORMS = ("store", "recompute")


def clip(form, scale, directions="both", dtype=torch.float64):
    loss = ClipLoss(0.07, True, "out", directions).to(dtype)
    return built(loss, form, scale)


def siglip(form, scale, weight=1.0):
    return built(SigLipLoss(0.1, True, -2.0, weight).double(), form, scale)


def built(loss, form, scale):
    loss.logit_scale.data.fill_(math.log(scale))
    loss.tile(Tiling(form))
    return loss


def sides(rows, noise, seed=0, width=16, dtype=torch.float64):
    """Targets, and queries as near to them as noise is small."""
    generator = torch.Generator().manual_seed(seed)
    target = F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=1)
    query = target + noise * torch.randn(rows, width, generator=generator, dtype=torch.float64) / width**0.5
    return query.to(dtype).requires_grad_(), target.to(dtype).requires_grad_()


def keys_of(rows, repeated):
    return torch.arange(rows) // 3 if repeated else torch.randperm(rows, generator=torch.Generator().manual_seed(1))


def differentiated(loss, query, target, keys):
    value = loss(query, target, keys)["loss_clip"]
    return [value.detach(), *torch.autograd.grad(value, [query, target, *loss.parameters()])]


def worst(found, expected):
    return max(
        float((one.double() - other.double()).norm() / other.norm().clamp(min=1e-300)) for one, other in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("directions", ["both", "query"])
@pytest.mark.parametrize("repeated", [False, True], ids=["unique", "repeated"])
@pytest.mark.parametrize("scale", [1, 14.3, 50, 74.99, 76, 100])
@pytest.mark.parametrize("form", FORMS)
def test_clip_in_tiles_equals_the_plain_formula_with_every_gradient(form, scale, repeated, directions):
    query, target = sides(150, 1.0)
    keys = keys_of(150, repeated)
    expected = differentiated(clip("dense", scale, directions), query, target, keys)
    assert worst(differentiated(clip(form, scale, directions), query, target, keys), expected) <= 1e-12


@pytest.mark.parametrize("weight", [1.0, 2.5])
@pytest.mark.parametrize("repeated", [False, True], ids=["unique", "repeated"])
@pytest.mark.parametrize("scale", [1, 10, 100])
def test_siglip_in_tiles_equals_the_plain_formula_with_every_gradient(scale, repeated, weight):
    query, target = sides(150, 1.0)
    keys = keys_of(150, repeated)
    expected = differentiated(siglip("dense", scale, weight), query, target, keys)
    assert worst(differentiated(siglip("store", scale, weight), query, target, keys), expected) <= 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_every_logged_term_is_the_plain_one(form):
    query, target = sides(70, 1.0)
    keys = keys_of(70, True)
    plain, found = clip("dense", 20)(query, target, keys), clip(form, 20)(query, target, keys)
    assert set(plain) == set(found)
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 7, 50])
@pytest.mark.parametrize("make", [clip, siglip])
def test_the_height_of_a_tile_changes_nothing(make, size, monkeypatch):
    query, target = sides(50, 0.7)
    keys = keys_of(50, True)
    expected = differentiated(make("dense", 14.3), query, target, keys)
    module = "mmexpert.losses.tiled" if make is clip else "mmexpert.losses.tiled_sigmoid"
    monkeypatch.setattr(f"{module}.row_tiles", lambda rows: [slice(a, min(rows, a + size)) for a in range(0, rows, size)])
    assert worst(differentiated(make("recompute", 14.3), query, target, keys), expected) <= 1e-12


@pytest.mark.parametrize("dtype, digits", [(torch.float32, 4e-7), (torch.float64, 8e-16)])
@pytest.mark.parametrize("most", [19.9, 400.0])
def test_softplus_and_sigmoid_in_one_pass_keep_their_digits_from_tiny_to_huge(dtype, digits, most):
    z = torch.linspace(-80, most, 4001, dtype=dtype)
    wide = z.double()
    expected = [max(float(x), 0.0) + math.log1p(math.exp(-abs(float(x)))) for x in wide]
    strip = z.clone()
    soft = softplus_(strip, 20.0 if dtype == torch.float32 else 40.0)
    torch.testing.assert_close(soft.double(), torch.tensor(expected, dtype=torch.float64), rtol=digits, atol=0)
    torch.testing.assert_close(strip.double(), wide.sigmoid(), rtol=digits, atol=0)


@pytest.mark.parametrize("scale, noise", [(14.3, 0.3), (40, 0.5), (76, 0.7)])
def test_tiny_losses_keep_their_digits_where_the_plain_fp32_gradient_has_lost_them(scale, noise):
    single = sides(200, noise, width=64, dtype=torch.float32)
    double = [x.detach().double().requires_grad_() for x in single]
    exact = differentiated(clip("dense", scale), *double, torch.arange(200))
    ours, plain = (
        worst(differentiated(clip(form, scale, dtype=torch.float32), *single, torch.arange(200))[1:3], exact[1:3])
        for form in ("store", "dense")
    )
    assert float(exact[0]) < 1.1e-3
    assert ours <= 5e-6 and ours <= plain / 10


@pytest.mark.parametrize("make", [clip, siglip])
@pytest.mark.parametrize("scale", [75, 100])
@pytest.mark.parametrize("sign", [1, -1])
def test_equal_and_opposite_rows_throughout_are_finite_in_fp32(make, scale, sign):
    row = F.normalize(torch.ones(1, 8), dim=1)
    query, target = row.repeat(90, 1).requires_grad_(), (sign * row).repeat(90, 1).requires_grad_()
    found = differentiated(make("store", scale).float(), query, target, torch.arange(90))
    assert all(bool(x.isfinite().all()) for x in found)
    if make is clip:
        assert float(found[0]) == pytest.approx(math.log(90), rel=1e-5)


@pytest.mark.parametrize("make", [clip, siglip])
def test_one_pair_alone_is_computed(make):
    query, target = sides(1, 0.5)
    for scale in (14.3, 99):
        found = differentiated(make("store", scale), query, target, torch.tensor([4]))
        expected = differentiated(make("dense", scale), query, target, torch.tensor([4]))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [clip, siglip])
def test_a_second_derivative_is_refused_and_not_wrong(make):
    query, target = sides(9, 0.5)
    value = make("store", 14.3)(query, target, torch.arange(9))["loss_clip"]
    with pytest.raises(RuntimeError, match="no second derivative: set trainer.loss_tile=dense"):
        torch.autograd.grad(value, query, create_graph=True)


@pytest.mark.parametrize("make", [clip, siglip])
def test_without_gradient_nothing_is_kept_and_the_second_pass_is_spared(make, monkeypatch):
    query, target = sides(80, 0.5)
    products = []
    monkeypatch.setattr(torch.Tensor, "addmm_", lambda *given, **_: products.append(given))
    with torch.no_grad():
        value = make("recompute", 14.3)(query, target, torch.arange(80))["loss_clip"]
    assert value.grad_fn is None and products == []


@pytest.mark.parametrize("make", [clip, siglip])
def test_a_frozen_side_gets_no_gradient_and_the_other_one_its_own(make):
    query, target = sides(80, 0.5)
    (expected,) = torch.autograd.grad(make("store", 14.3)(query, target, torch.arange(80))["loss_clip"], query)
    make("store", 14.3)(query, target.detach(), torch.arange(80))["loss_clip"].backward()
    torch.testing.assert_close(query.grad, expected)


@pytest.mark.parametrize("make", [clip, siglip])
def test_autocast_changes_nothing_and_strided_features_are_taken(make):
    query, target = sides(70, 0.7, dtype=torch.float32)
    wide = torch.stack([query.detach(), query.detach()], 2)[..., 0].requires_grad_()
    loss, keys = make("store", 14.3).float(), torch.arange(70)
    expected = differentiated(loss, query, target, keys)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert worst(differentiated(loss, wide, target, keys), expected) <= 1e-6


def test_small_batches_are_dense_and_large_ones_are_never_one_graph():
    tiling = Tiling()
    assert tiling.of_size(4 * 512**2, 2**20) == "dense"
    assert tiling.of_size(4 * 4096**2, 2**20) == "store"
    assert tiling.of_size(4 * 4097**2, 2**20) == "recompute"
    assert Tiling("dense").of_size(2**40, 2**20) == "dense"


def test_a_loss_whose_direction_is_its_own_is_never_tiled():
    class Doubled(ClipLoss):
        def direction(self, logits, positives, side):
            loss, floor = super().direction(logits, positives, side)
            return 2 * loss, floor

    query, target = sides(20, 0.7)
    loss = built(Doubled(0.07, True, "out", "both").double(), "store", 14.3)
    plain = clip("dense", 14.3)(query, target, torch.arange(20))["loss_clip"]
    torch.testing.assert_close(loss(query, target, torch.arange(20))["loss_clip"], 2 * plain)


def test_unknown_forms_are_config_errors():
    with pytest.raises(ConfigError, match="loss_tile=fast: choose auto, dense, store or recompute"):
        Tiling("fast")
    with pytest.raises(ConfigError, match="loss_exchange=star: choose auto, rows or ring"):
        Tiling(exchange="star")


def test_memory_of_recompute_is_a_tile_and_not_a_matrix():
    rows = 2048
    query, target = sides(rows, 0.7, dtype=torch.float32)
    widest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            widest.append(result.numel() if isinstance(result, torch.Tensor) else 0)
            return result

    with Watch():
        differentiated(clip("recompute", 14.3, dtype=torch.float32), query, target, torch.arange(rows))
    assert 64 * rows <= max(widest) <= 512 * rows
