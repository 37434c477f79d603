"""A trained run opens as a model whose features are the evaluator's, without data or network."""

import numpy as np
import pytest
import torch

import mmexpert
from mmexpert.types import RunFolderError


def test_a_loaded_model_gives_the_features_of_the_trained_one_whatever_the_batch_size(tiny_run):
    model = mmexpert.load(tiny_run, device="cpu")
    texts = ["a person walks forward", "someone squats twice", "an adult jumps"]
    whole, single = model.encode_text(texts), torch.cat([model.encode_text(text) for text in texts])
    torch.testing.assert_close(whole, single, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(3))
    assert model.encode_text([]).shape == (0, model.dim)


def test_the_loaded_radar_tower_ranks_the_test_part_as_the_run_did(tiny_run):
    import json

    from mmexpert import build

    config = json.loads((tiny_run / "config.json").read_text())["config"]
    dataset = build.build_dataset(config)
    model = mmexpert.load(tiny_run, device="cpu")
    records = [dataset.records[i] for i in dataset.part("test")]
    query = model.encode("radar", [dataset.clip(record, -1, None) for record in records])
    target = model.encode("text", [record.captions[0] for record in records])
    from mmexpert.metrics.retrieval import retrieval_metrics

    keys = torch.tensor(dataset.keys[dataset.part("test")])
    metrics, _ = retrieval_metrics(query, target, keys, keys, ("radar", "text"))
    stored = json.loads((tiny_run / "metrics.json").read_text())
    assert metrics["radar_to_text_hits@10"] == stored["test/radar_to_text_hits@10"]
    assert metrics["text_to_radar_mean_rank"] == pytest.approx(stored["test/text_to_radar_mean_rank"])


def test_wrong_input_and_a_folder_without_a_model_are_told(tiny_run, tmp_path):
    model = mmexpert.load(tiny_run, device="cpu")
    with pytest.raises(TypeError, match="this model encodes radar, text"):
        model.encode("image", [])
    with pytest.raises(TypeError, match="clip 0: a dict of some of"):
        model.encode_radar([{"doppler": np.zeros((128, 96), np.float32)}])
    with pytest.raises(RunFolderError, match=r"no model/ with model.safetensors"):
        mmexpert.load(tmp_path)


def test_a_stored_config_that_names_foreign_code_is_refused(tiny_run, tmp_path):
    import json
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(tiny_run / "model", copy)
    config = json.loads((copy / "config.json").read_text())
    config["encoder"]["radar"]["_target_"] = "os.system"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(mmexpert.types.ConfigError, match="is refused"):
        mmexpert.load(copy)
