"""Image towers: shapes, weights from files, what is frozen, errors that name both keys."""

import pytest
import timm
import torch

from mmexpert.encoders.image import ConvImage, TimmImage
from mmexpert.types import ConfigError, SourceError


def conv(**given):
    keys = {
        "dim": 16, "lr_scale": 1.0, "side": 32, "in_chans": 3, "mean": [0.5], "std": [0.25], "channels": [8, 12], "freeze_backbone": False,
        "norm": "batch",
    }  # fmt: skip
    return ConvImage(**keys | given)


def small(**given):
    keys = {
        "dim": 16, "lr_scale": 1.0, "side": 32, "in_chans": 1, "mean": [0.5], "std": [0.25], "name": "test_resnet", "weights": None,
        "pooling": "own", "freeze_backbone": False, "norm": "batch",
    }  # fmt: skip
    torch.manual_seed(0)
    return TimmImage(**keys | given)


@pytest.mark.parametrize("build", [conv, lambda: small(in_chans=3)], ids=["conv", "timm"])
def test_a_tower_gives_a_vector_and_a_grid_of_tokens_with_gradient_everywhere(build):
    tower = build()
    encoding = tower(torch.rand(2, 3, 32, 32))
    assert encoding.features.shape == (2, 16) and encoding.sequence.ndim == 3 and encoding.sequence.shape[::2] == (2, 16)
    encoding.features.square().sum().backward()
    assert not [name for name, p in tower.named_parameters() if p.grad is None]  # DDP waits for ever for an idle one


def test_conv_tokens_are_the_cells_shares_of_the_flattened_projection():
    tower = conv().eval()
    encoding = tower(torch.rand(2, 3, 32, 32))
    grid = tower.stack(torch.rand(2, 3, 32, 32))
    assert grid.shape == (2, 12, 4, 4)
    torch.testing.assert_close(encoding.sequence.sum(1), encoding.features)
    flat = grid.flatten(2).mT.flatten(1) @ tower.projection.flatten(0, 1)
    torch.testing.assert_close(flat, torch.einsum("bcl,lcd->bd", grid.flatten(2), tower.projection))


@pytest.mark.parametrize("pooling", ["own", "mean", "attention"])
def test_convolutional_timm_models_pool_each_way(pooling):
    encoding = small(pooling=pooling)(torch.rand(2, 1, 32, 32))
    assert encoding.features.shape == (2, 16) and encoding.sequence.shape == (2, 1, 16)


@pytest.mark.parametrize("pooling", ["own", "mean", "cls", "attention"])
def test_transformers_of_any_side_leave_prefix_tokens_out_of_the_sequence(pooling):
    tower = small(name="test_vit", pooling=pooling, side=64)
    patch = tower.model.patch_embed.patch_size[0]
    encoding = tower(torch.rand(2, 1, 64, 64))
    assert encoding.features.shape == (2, 16) and encoding.sequence.shape == (2, (64 // patch) ** 2, 16)


@pytest.mark.parametrize("channels", [1, 3])
def test_weights_of_a_local_file_are_loaded_bit_by_bit(tmp_path, channels):
    from safetensors.torch import save_file

    torch.manual_seed(1)
    stored = timm.create_model("test_resnet", pretrained=False, in_chans=3)
    save_file(stored.state_dict(), tmp_path / "model.safetensors")
    for weights in (tmp_path / "model.safetensors", tmp_path):
        tower = small(weights=str(weights), in_chans=channels)
        name = next(name for name, _ in tower.model.named_parameters() if name.endswith("weight"))
        expected = stored.state_dict()[name]
        assert torch.equal(tower.model.state_dict()[name], expected if channels == 3 else expected.sum(1, keepdim=True))
        assert torch.equal(tower.model.state_dict()["layer4.0.conv2.weight"], stored.state_dict()["layer4.0.conv2.weight"])


def test_pictures_normalised_otherwise_than_the_weights_were_are_warned_of_with_both_values(tmp_path, caplog):
    from safetensors.torch import save_file

    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), tmp_path / "model.safetensors")
    made = timm.models.get_pretrained_cfg("test_resnet")
    small(weights=str(tmp_path), in_chans=3, mean=list(made.mean), std=list(made.std))
    assert caplog.text == ""
    small(weights=str(tmp_path), in_chans=3, mean=[0.1, 0.2, 0.3], std=list(made.std))
    assert f"encoder.image.mean=[0.1, 0.2, 0.3], but the weights of test_resnet were made with {list(made.mean)}" in caplog.text


@pytest.mark.parametrize("alias", ["resnet18", "resnet50", "vit_b32", "test_resnet"])
def test_an_alias_names_a_timm_model_and_the_constants_of_its_weights(alias):
    from mmexpert.command_line import composed

    node = composed(f"encoder/image={alias}").encoder.image
    made = timm.models.get_pretrained_cfg(node.name)
    assert made.input_size[1] == node.side or alias == "test_resnet"
    if alias != "test_resnet":  # from scratch, on grey pictures
        assert node.weights == "pretrained" and list(node.mean) == pytest.approx(made.mean) and list(node.std) == pytest.approx(made.std)
    assert node.name == ("vit_base_patch32_clip_quickgelu_224" if alias == "vit_b32" else alias)


def test_weights_that_are_nowhere_end_with_three_ways_and_never_with_random_ones():
    with pytest.raises(SourceError, match=r"encoder.image.weights=.*Three ways on"):
        small(weights="pretrained")


def test_a_frozen_backbone_learns_nothing_and_frozen_norms_keep_their_statistics():
    frozen = small(freeze_backbone=True)
    assert frozen.frozen_modules() == [frozen.model] and not any(p.requires_grad for p in frozen.model.parameters())
    norms = small(norm="frozen").frozen_modules()
    assert norms and all(isinstance(part, torch.nn.BatchNorm2d) for part in norms)
    assert small().frozen_modules() == []


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": "resnet1800"}, "timm has no such model"),
        ({"in_chans": 2}, "in_chans=2: 1 .grey. or 3"),
        ({"mean": [0.5, 0.5]}, "mean holds 2 numbers"),
        ({"pooling": "max"}, "choose own, mean, cls or attention"),
        ({"pooling": "cls"}, "no class token"),
        ({"norm": "group"}, "choose batch or frozen"),
    ],
)
def test_impossible_keys_are_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        small(**changes)


def test_pictures_of_another_shape_name_both_keys():
    with pytest.raises(ConfigError, match=r"3 channels \(dataset.channels\), encoder.image.in_chans=1"):
        small()(torch.rand(1, 3, 32, 32))
    with pytest.raises(ConfigError, match="expected encoder.image.side=32"):
        small()(torch.rand(1, 1, 48, 48))
