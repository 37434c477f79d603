"""model/: replaced as a whole, and complete for whoever gets it alone."""

import json

import pytest
from safetensors.torch import load_file
from torch import nn

from mmexpert.engine import export
from mmexpert.engine.files import sha256_file
from mmexpert.types import ClassTable

CONFIG = {
    "name": "toy", "encoder": {"text": {"api_key": "hunter2hunter2"}}, "model": {"query": "radar", "target": "text"},
    "similarity": None, "dataset": {"_target_": "mmexpert.data.radar_sim.RadarSim"}, "sequence_weight": 0.5,
}  # fmt: skip


class Toy(nn.Module):
    """What save_model asks of an objective."""

    def __init__(self, value):
        super().__init__()
        self.model = nn.Linear(2, 2)
        nn.init.constant_(self.model.weight, value)
        self.model.encoders, self.model.query, self.model.target = {}, "radar", "text"
        self.similarity = nn.Linear(1, 1)


def save(folder, value=1.0):
    export.save_model(
        folder, Toy(value), CONFIG, None, ClassTable(names=("a",), texts=(("an a",),), counts=(1,)), {"test/R@1": 12.5, "monitor": "x"},
        {"image": {"_target_": "somewhere", "sd": [0.5]}}, "epoch_01_val_12.5",
    )  # fmt: skip


def test_weights_parts_classes_and_card(tmp_path):
    save(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert set(weights) == {"model.weight", "model.bias", "similarity.weight", "similarity.bias"}
    stored = json.loads((tmp_path / "model" / "config.json").read_text())
    assert stored["preparation"] == {"image": {"_target_": "somewhere", "sd": [0.5]}}
    assert stored["roles"] == ["radar", "text"] and stored["metrics"] == {"test/R@1": 12.5}
    assert stored["encoder"]["text"]["api_key"] == "***"
    assert stored["fingerprint"] == sha256_file(tmp_path / "model" / "model.safetensors")
    assert json.loads((tmp_path / "model" / "classes.json").read_text())["names"] == ["a"]
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| test/R@1 | 12.5 |" in card and "Licence:" in card and "mmexpert.load(" in card


def test_a_save_that_fails_leaves_the_old_model_whole(tmp_path, monkeypatch):
    save(tmp_path / "model", 1.0)
    monkeypatch.setattr(export, "model_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(tmp_path / "model", 2.0)
    assert load_file(tmp_path / "model" / "model.safetensors")["model.weight"].unique().item() == 1.0
    monkeypatch.undo()
    save(tmp_path / "model", 3.0)
    assert load_file(tmp_path / "model" / "model.safetensors")["model.weight"].unique().item() == 3.0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
