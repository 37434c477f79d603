"""The Combiner against its published vector, names and size; its files load unchanged, or say what is wrong with them."""

import hashlib

import numpy as np
import pytest
import torch

from mmexpert.models.combiner import GatedCombiner, SumCombiner
from mmexpert.types import ConfigError, SourceError

PUBLISHED = {
    f"{layer}.{kind}"
    for layer in (
        "text_projection_layer",
        "image_projection_layer",
        "combiner_layer",
        "output_layer",
        "dynamic_scalar.0",
        "dynamic_scalar.3",
    )
    for kind in ("weight", "bias")
}


def noise(name: str, size: int) -> torch.Tensor:
    """The spec's noise: SHAKE-256 as little-endian uint32, / 2^31 - 1, fp64."""
    words = np.frombuffer(hashlib.shake_256(name.encode()).digest(4 * size), "<u4")
    return torch.from_numpy(words.astype(np.float64) / 2**31 - 1)


def small(weights=None, **sizes) -> GatedCombiner:
    return GatedCombiner(**({"dim": 4, "projection_dim": None, "hidden_dim": None, "dropout": 0.5} | sizes), weights=weights)


def test_the_forward_vector_is_met_to_a_billionth():
    combiner = small().double().eval()
    for key, parameter in combiner.named_parameters():
        parameter.data = 0.25 * noise(f"combiner:{key}", parameter.numel()).reshape(parameter.shape)
    reference, text = noise("combiner:image", 8).reshape(2, 4), noise("combiner:text", 8).reshape(2, 4)
    gates = []
    combiner.dynamic_scalar.register_forward_hook(lambda module, inputs, gate: gates.append(gate))
    found = combiner(reference, text)
    expected = [[-0.613353331, 0.711459881, 0.035351710, -0.341134557], [-0.149382762, 0.326205350, -0.596316737, -0.718109469]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(gates[0][:, 0], torch.tensor([0.582791305, 0.562421109], dtype=torch.float64), atol=1e-9, rtol=0)


def test_at_width_640_it_has_the_published_keys_and_59003521_parameters():
    with torch.device("meta"):
        combiner = GatedCombiner(640, 2560, 5120, 0.5, None)
    assert set(combiner.state_dict()) == PUBLISHED
    assert sum(parameter.numel() for parameter in combiner.parameters()) == 59_003_521


def test_the_sum_is_of_raw_features_and_has_length_one():
    reference, text = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    torch.testing.assert_close(SumCombiner()(reference, text), torch.tensor([[0.6, 0.8]]))


def test_dropout_works_in_training_alone():
    combiner, reference, text = small(), torch.randn(3, 4), torch.randn(3, 4)
    assert not torch.equal(combiner(reference, text), combiner(reference, text))
    combiner.eval()
    assert torch.equal(combiner(reference, text), combiner(reference, text))


def test_a_published_file_loads_with_its_half_precision_and_gives_the_same_features(tmp_path):
    source = small().eval()
    path = tmp_path / "combiner.pt"
    state = {name: value.half() for name, value in source.state_dict().items()}
    torch.save({"epoch": 7, "Combiner": state}, path)
    loaded = small(str(path)).eval()
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, state[name].float()), name


def test_a_renamed_key_is_named_on_both_sides(tmp_path):
    state = small().state_dict()
    state["output.weight"] = state.pop("output_layer.weight")
    torch.save({"epoch": 7, "Combiner": state}, tmp_path / "combiner.pt")
    with pytest.raises(ConfigError, match=r"combiner.weights=.*missing output_layer.weight; unexpected output.weight"):
        small(str(tmp_path / "combiner.pt"))


def test_other_widths_are_told_with_both_shapes(tmp_path):
    torch.save({"epoch": 7, "Combiner": small(dim=6).state_dict()}, tmp_path / "combiner.pt")
    with pytest.raises(ConfigError, match=r"text_projection_layer.weight is \[24, 6\], expected \[16, 4\]"):
        small(str(tmp_path / "combiner.pt"))


def test_a_file_without_the_entry_or_with_code_or_absent_is_refused(tmp_path):
    path = tmp_path / "combiner.pt"
    with pytest.raises(SourceError, match="there is no such file"):
        small(str(path))
    torch.save({"epoch": 7, "CLIP": {}}, path)
    with pytest.raises(ConfigError, match="expected an entry 'Combiner' with a state, the file holds epoch, CLIP"):
        small(str(path))
    torch.save({"Combiner": small()}, path)  # a pickled module: code
    with pytest.raises(SourceError, match="can not be read as plain tensors"):
        small(str(path))


def test_a_published_file_that_is_damaged_anywhere_is_a_source_error(tmp_path):
    path, rng = tmp_path / "combiner.pt", np.random.default_rng(0)
    for zipped in (True, False):  # torch's format, and the one before 1.6
        torch.save({"Combiner": small().state_dict()}, path, _use_new_zipfile_serialization=zipped)
        whole, refused = np.fromfile(path, np.uint8), 0
        for turn in range(60):
            damaged = whole[: rng.integers(len(whole))] if turn % 2 else whole.copy()
            if len(damaged):
                damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
            damaged.tofile(path)
            try:
                small(str(path))
            except (SourceError, ConfigError) as error:
                refused += "combiner.weights" in str(error)
        assert refused >= 30  # all that are cut, at least; a bit of a weight may turn unseen
