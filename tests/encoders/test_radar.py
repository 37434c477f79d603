"""Both radar towers: padding never leaks, views may be absent, tokens are time."""

import pytest
import torch
from torch import nn

from mmexpert.encoders.fusion import Add, Concat, ViewAttention
from mmexpert.encoders.pooling import Trunk
from mmexpert.encoders.radar import ROWS, STRIDES, ConvLayer, RadarConv1d, RadarViT
from mmexpert.types import ConfigError

DIM = 16
TOWERS = ["conv1d", "vit"]


def tower(kind, unit_length=16, views="all", fusion=None, pooling="attention", context_length=8, strides=None):
    torch.manual_seed(0)
    trunk = Trunk(DIM, 1, 2, 0.1, context_length, pooling)
    fusion = fusion or Concat(DIM, 0.0, 3)
    if kind == "vit":
        made = RadarViT(DIM, 1.0, fusion, trunk, unit_length, views, {"depth": 1, "width": 12, "heads": 3, "dropout": 0.1})
    else:
        made = RadarConv1d(DIM, 1.0, fusion, trunk, unit_length, views, 8, strides)
    return made.eval()


def clips(lengths, frames, seed=0):
    generator = torch.Generator().manual_seed(seed)
    radar = {view: torch.rand(len(lengths), rows, frames, generator=generator) for view, rows in ROWS.items()}
    return radar | {"mask": torch.arange(frames) < torch.tensor(lengths)[:, None]}


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("pooling", ["attention", "eot", "mean"])
@pytest.mark.parametrize("junk", [1e6, float("nan"), float("inf")])
def test_what_lies_in_a_padded_frame_never_matters(kind, pooling, junk):
    module, radar = tower(kind, pooling=pooling), clips([64, 35, 1], 64)
    clean = module(radar)
    dirty = module({view: x if view == "mask" else x.where(radar["mask"][:, None], junk) for view, x in radar.items()})
    assert torch.equal(clean.features, dirty.features)
    assert torch.equal(clean.sequence, dirty.sequence)
    assert clean.features.isfinite().all()


@pytest.mark.parametrize("kind", TOWERS)
def test_a_clip_alone_equals_the_clip_in_a_batch_of_longer_ones(kind):
    module, radar = tower(kind), clips([96, 40], 96)
    together = module(radar)
    alone = module({name: x[1:, ..., :48] for name, x in radar.items()})
    torch.testing.assert_close(together.features[1:], alone.features, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(together.sequence[1:, :3], alone.sequence, atol=1e-6, rtol=1e-5)
    assert not together.sequence[1, 3:].any()


@pytest.mark.parametrize("kind", TOWERS)
def test_a_token_is_real_where_one_of_its_frames_is(kind):
    encoding = tower(kind)(clips([64, 33, 32, 1], 64))
    assert encoding.mask.sum(1).tolist() == [4, 3, 2, 1]
    assert encoding.features.shape == (4, DIM)
    assert encoding.sequence.shape == (4, 4, DIM)


@pytest.mark.parametrize(("kind", "reached"), [("conv1d", [1, 2, 3]), ("vit", [2])])
def test_a_change_within_a_token_reaches_that_token_and_through_the_kernels_its_neighbours(kind, reached):
    """Frames 36..43 lie in token 2 of 6; attention, which reaches all, is taken out."""
    module = tower(kind, fusion=Add(DIM, 0.0), pooling="mean")
    module.trunk.blocks = nn.ModuleList()
    if kind == "vit":
        for vit in module.towers.values():
            vit.blocks = nn.ModuleList()
    radar = clips([96], 96)
    before = module(radar).sequence
    radar["doppler_time"][:, :, 36:44] += 1
    moved = (module(radar).sequence - before).abs().amax(2)[0] > 1e-6
    assert moved.nonzero()[:, 0].tolist() == reached


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("fusion", [Concat(DIM, 0.0, 3), Add(DIM, 0.0), ViewAttention(DIM, 0.0, 2)])
def test_a_tower_of_all_views_takes_a_clip_that_shows_doppler_alone(kind, fusion):
    module, radar = tower(kind, fusion=fusion), clips([48, 20], 48)
    whole = module(radar)
    doppler = module({name: radar[name] for name in ("doppler_time", "mask")})
    assert doppler.features.isfinite().all()
    assert doppler.sequence.shape == whole.sequence.shape
    assert not torch.allclose(doppler.features, whole.features)


@pytest.mark.parametrize("kind", TOWERS)
def test_an_absent_view_is_told_to_the_fusion_and_not_averaged_as_zero(kind):
    module, radar = tower(kind, fusion=Add(DIM, 0.0)), clips([48, 20], 48)
    fused = []
    module.fusion.register_forward_hook(lambda _, inputs, output: fused.append((inputs[0], output)))
    module({name: radar[name] for name in ("doppler_time", "mask")})
    views, output = fused[0]
    torch.testing.assert_close(output, views[:, :, 1])
    assert output.any()


@pytest.mark.parametrize("kind", TOWERS)
def test_every_parameter_of_a_doppler_tower_learns_from_doppler_alone(kind):
    module, radar = tower(kind, views=["doppler"]).train(), clips([48, 20], 48)
    module({name: radar[name] for name in ("doppler_time", "mask")}).features.square().sum().backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("kind", TOWERS)
def test_the_order_of_the_views_in_a_batch_never_matters(kind):
    module, radar = tower(kind), clips([48], 48)
    assert torch.equal(module(dict(reversed(radar.items()))).features, module(radar).features)


@pytest.mark.parametrize("kind", TOWERS)
def test_views_that_the_tower_does_not_know_are_an_error_that_names_both(kind):
    with pytest.raises(KeyError, match="radar holds azimuth_time, doppler_time, mask, range_time.*one or more of doppler_time"):
        tower(kind, views=["doppler"])(clips([16], 16))
    with pytest.raises(KeyError, match="radar holds mask; this tower takes mask and one or more of range_time"):
        tower(kind)({"mask": torch.ones(1, 16, dtype=torch.bool)})
    with pytest.raises(ConfigError, match=r"encoder\.radar\.views=\['speed'\]: write `all` or a list"):
        tower(kind, views=["speed"])


@pytest.mark.parametrize("kind", TOWERS)
def test_more_tokens_than_context_length_is_an_error_that_names_the_key(kind):
    with pytest.raises(ConfigError, match=r"9 time tokens.*context_length=8"):
        tower(kind)(clips([144], 144))


@pytest.mark.parametrize("kind", TOWERS)
def test_frames_that_are_no_multiple_of_unit_length_are_an_error(kind):
    with pytest.raises(ConfigError, match=r"40 frames are no multiple of encoder\.radar\.unit_length=16"):
        tower(kind)(clips([40], 40))


@pytest.mark.parametrize("unit_length", sorted(STRIDES))
def test_every_usual_unit_length_gives_one_token_per_unit(unit_length):
    encoding = tower("conv1d", unit_length=unit_length, context_length=64)(clips([48, 20], 48))
    assert encoding.sequence.shape[1] == 48 // unit_length
    assert encoding.mask[1].sum() == -(-20 // unit_length)


def test_odd_strides_give_one_token_per_unit_too():
    assert tower("conv1d", unit_length=9, strides=[3, 3])(clips([36, 10], 36)).mask.sum(1).tolist() == [4, 2]


def test_strides_of_another_product_are_an_error_that_names_both():
    with pytest.raises(ConfigError, match=r"strides=\[4, 2, 1\] multiply to 8, not to dataset\.unit_length=16"):
        tower("conv1d", strides=[4, 2, 1])
    with pytest.raises(ConfigError, match=r"give three factors of dataset\.unit_length=12"):
        tower("conv1d", unit_length=12)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_convolution_has_kernel_2s_and_half_a_stride_of_padding(stride):
    torch.manual_seed(0)
    layer, x = ConvLayer(4, 6, stride), torch.randn(2, 4, 8)
    kernel, padding = {1: (3, 1), 2: (4, 1), 4: (8, 2)}[stride]
    conv = nn.functional.conv1d(x, layer.conv.weight, layer.conv.bias, stride, padding)
    assert layer.conv.weight.shape[2] == kernel
    expected = nn.functional.gelu(nn.functional.layer_norm(conv.transpose(1, 2), (6,)).transpose(1, 2))
    torch.testing.assert_close(layer(x), expected)
    assert expected.shape[2] == 8 // stride


def test_masking_after_each_layer_keeps_the_bias_of_padded_frames_out():
    """The first layer's bias would else reach the last real token through the second layer's kernel."""
    module = tower("conv1d", fusion=Add(DIM, 0.0), pooling="mean")
    for stack in module.stacks.values():
        nn.init.constant_(stack[0].norm.bias, 5.0)
    radar = clips([64, 32], 64)
    short = module({name: x[1:, ..., :32] for name, x in radar.items()})
    torch.testing.assert_close(module(radar).features[1:], short.features, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("view", sorted(ROWS))
def test_patches_equal_a_convolution_with_its_weights(view):
    vit = tower("vit").towers[view]
    rows, frames = vit.patch
    assert rows == ROWS[view] // 8
    conv = nn.Conv2d(1, 12, (rows, frames), (rows, frames))
    vit.embed.load_state_dict({"weight": conv.weight.detach().flatten(1), "bias": conv.bias.detach()})
    x = torch.rand(2, ROWS[view], 48)
    torch.testing.assert_close(vit.patches(x), conv(x[:, None]).permute(0, 2, 3, 1), atol=1e-6, rtol=0)


def test_vit_tokens_are_raster_and_each_column_is_one_time_token():
    """Index = row * W + column on the way in; the blocks are replaced by one that records it."""
    vit = tower("vit").towers["doppler_time"]
    seen = []

    class Record(nn.Module):
        def forward(self, tokens, mask):
            seen.append((tokens, mask))
            return tokens

    vit.blocks = nn.ModuleList([Record()])
    x, mask = torch.rand(1, 128, 48), torch.tensor([[True, True, False]])
    out = vit(x, mask)
    tokens, key_mask = seen[0]
    patches = vit.embed_norm(vit.patches(x))
    for row in range(8):
        for column in range(3):
            expected = patches[:, row, column] + vit.row[row, 0] + vit.column[0, column]
            torch.testing.assert_close(tokens[:, row * 3 + column], expected)
            assert key_mask[0, row * 3 + column] == mask[0, column]
    for column in range(3):
        rows = vit.norm(tokens[:, [row * 3 + column for row in range(8)]])
        torch.testing.assert_close(out[:, column], vit.out(vit.pool(rows, None)))


def test_a_size_of_the_vit_that_is_misspelt_is_named():
    with pytest.raises(ConfigError, match=r"encoder\.radar\.tower holds deep, heads, width.*add or remove deep, depth, dropout"):
        RadarViT(DIM, 1.0, Add(DIM, 0.0), Trunk(DIM, 0, 2, 0.0, 8, "mean"), 16, "all", {"deep": 1, "width": 12, "heads": 3})


@pytest.mark.parametrize("kind", TOWERS)
def test_a_forward_pass_reads_nothing_back_from_the_device(kind):
    from torch.utils._python_dispatch import TorchDispatchMode

    class NoReads(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            banned = ("_local_scalar_dense", "nonzero", "_unique2", "masked_select", "equal.", "lift_fresh")
            assert not any(name in str(func) for name in banned), func
            return func(*args, **(kwargs or {}))

    module, radar = tower(kind, fusion=ViewAttention(DIM, 0.3, 2)).train(), clips([48, 20], 48)
    with NoReads():
        module(radar)
