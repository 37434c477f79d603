"""The cache of frozen towers' features: what it changes (time), what it does not (numbers), when it is made again."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmexpert import build
from mmexpert.command_line import composed
from mmexpert.config import check
from mmexpert.encoders.table import RowTokenizer, Table
from mmexpert.types import ConfigError, DataError

SIZES = ["dataset.triplets={train: 40, valid: 12, test: 0}", "trainer.num_workers=0", "trainer.batch_size=16", "trainer.drop_last=false"]


@pytest.fixture(scope="module")
def scenes_cache(tmp_path_factory):
    """Where the drawn scenes lie, once for all tests."""
    return tmp_path_factory.mktemp("scenes")


class Stage:
    """A stage-2 training as a run builds it, without a run folder."""

    def __init__(self, folder, scenes_cache, *overrides):
        self.cfg = check(
            composed(
                "experiment=cir_combiner",
                *SIZES,
                f"cache_dir={folder}",
                f"dataset.cache_dir={scenes_cache}",
                "combiner.dropout=0",
                *overrides,
            )
        )
        self.dataset = build.build_dataset(self.cfg)
        parts = {part: self.dataset.part(part) for part in ("train", "valid", "test")}
        tokenizer = build.build_tokenizer(self.cfg, self.dataset.vocabulary_texts(parts["train"]))
        torch.manual_seed(3)
        self.model = build.build_model(self.cfg, None, tokenizer)
        self.objective = build.build_objective(self.cfg, self.model, None)
        self.cache = build.build_cache(self.cfg, self.model, self.dataset, tokenizer)
        served = (self.cache.dataset, self.cache.tokenizer) if self.cache else (self.dataset, tokenizer)
        self.loaders = build.build_loaders(self.cfg, served[0], parts, served[1], 0, build.Placement(torch.device("cpu")))

    def losses(self, steps):
        """loss_total of the first steps."""
        optimizer, _ = build.build_optimizer(self.cfg, self.objective, self.loaders.steps_per_epoch)
        self.objective.train()
        found, epoch = [], 0
        while len(found) < steps:
            for (batch,) in self.loaders.train(epoch, 0):
                loss = self.objective(batch)[0]["loss_total"]
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                found.append(float(loss.detach()))
            epoch += 1
        return found[:steps]


@pytest.mark.parametrize("frozen", ["none", "text", "image"])
def test_the_first_20_losses_are_those_without_a_cache(tmp_path, scenes_cache, frozen):
    """train_towers=text: the image tower alone is a table, and the other way round. Dropout of the text tower that learns is off."""
    options = [f"model.train_towers={frozen}", "encoder.text.bert.dropout=0", "dataset.captions=2"]
    cached, plain = Stage(tmp_path, scenes_cache, *options), Stage(tmp_path, scenes_cache, "cache=false", *options)
    assert cached.cache.towers.keys() == {"none": {"image", "text"}, "text": {"image"}, "image": {"text"}}[frozen]
    assert plain.cache is None
    assert cached.losses(20) == pytest.approx(plain.losses(20), abs=1e-6)


def test_rows_are_raw_features_of_every_picture_and_every_caption_variant(tmp_path, scenes_cache):
    stage = Stage(tmp_path, scenes_cache, "dataset.captions=2")
    stage.cache.put_back()
    stage.model.eval()
    names = json.loads((stage.cache.folder / "image_names.json").read_text())
    images, texts = np.load(stage.cache.folder / "images.npy"), json.loads((stage.cache.folder / "texts.json").read_text())
    assert set(names) == {f"{part}/{record.id}" for part in ("train", "valid") for record in stage.dataset.pictures(part).records}
    assert {variant for record in stage.dataset.records for variant in record.captions} <= set(texts)
    assert len(set(names)) == len(names) == len(images) and len(set(texts)) == len(texts)
    with torch.no_grad():
        for row in (0, len(names) - 1):
            part, name = names[row].split("/", 1)
            picture = torch.from_numpy(stage.dataset.picture(part, name))[None]
            np.testing.assert_allclose(stage.model.encode("image", picture).features[0], images[row], atol=1e-5)
    assert not np.allclose(np.linalg.norm(images, axis=1), 1, atol=0.05), "raw, not normalised"
    meta = json.loads((stage.cache.folder / "meta.json").read_text())
    assert meta["precision"] == "fp32" and meta["normalized"] is False


def test_an_epoch_over_it_opens_no_picture(tmp_path, scenes_cache, monkeypatch):
    stage = Stage(tmp_path, scenes_cache)
    opened = []
    monkeypatch.setattr(Image, "fromarray", lambda *_: opened.append(1))
    monkeypatch.setattr(Image, "open", lambda *_: opened.append(1))
    batches = [batch for (batch,) in stage.loaders.train(0, 0)]
    assert opened == [] and batches[0]["reference"].shape == (16,) and batches[0]["text"]["input_ids"].shape == (16, 1)
    assert [len(batch["id"]) for batch in batches] == [16, 16, 8]


def test_it_is_reused_and_made_again_for_other_weights_transform_or_tokenizer(tmp_path, scenes_cache, monkeypatch):
    first = Stage(tmp_path, scenes_cache).cache.folder
    from mmexpert.engine.feature_cache import FeatureCache

    made = []
    monkeypatch.setattr(FeatureCache, "_encode", spying(FeatureCache._encode, made))
    assert Stage(tmp_path, scenes_cache).cache.folder == first and made == []
    changes = ["dataset.transform.mean=[0.4]", "encoder.text.max_length=6", "model.projection_dim=64"]
    folders = {Stage(tmp_path, scenes_cache, change).cache.folder for change in changes}
    assert len(folders | {first}) == 4 and len(made) == 6


def spying(function, made):
    def spied(self, role, *rest):
        made.append(role)
        return function(self, role, *rest)

    return spied


def test_other_weights_of_a_tower_have_another_folder(tmp_path, scenes_cache):
    stage = Stage(tmp_path, scenes_cache)
    before = stage.cache.folder
    stage.cache.put_back()
    with torch.no_grad():
        next(stage.model.encoders["image"].parameters()).add_(1e-3)
    tokenizer = build.build_tokenizer(stage.cfg, stage.dataset.vocabulary_texts([]))
    assert build.build_cache(stage.cfg, stage.model, stage.dataset, tokenizer).folder != before


@pytest.mark.parametrize("file", ["images.npy", "texts.json", "manifest.json"])
def test_a_damaged_file_is_made_again(tmp_path, scenes_cache, file, caplog):
    folder = Stage(tmp_path, scenes_cache).cache.folder
    sound = np.load(folder / "images.npy")
    bytes_before = (folder / file).read_bytes()
    (folder / file).write_bytes(bytes_before[:-9] + b"x" * 9)
    Stage(tmp_path, scenes_cache)
    assert "is made again" in caplog.text
    np.testing.assert_array_equal(np.load(folder / "images.npy"), sound)
    assert [path.name for path in folder.parent.iterdir() if ".tmp-" in path.name] == []


def test_a_maker_that_dies_leaves_no_folder(tmp_path, scenes_cache, monkeypatch):
    from mmexpert.engine.feature_cache import FeatureCache

    with monkeypatch.context() as broken:
        broken.setattr(FeatureCache, "_encode", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Stage(tmp_path, scenes_cache)
    assert [path for path in (tmp_path / "features").iterdir() if path.is_dir() and ".tmp-" not in path.name] == []
    assert Stage(tmp_path, scenes_cache).cache.folder.is_dir()


def test_a_table_gives_rows_saves_none_of_them_and_checks_its_width(tmp_path):
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(tmp_path / "images.npy", rows)
    table = Table(4, 1.0, str(tmp_path / "images.npy"))
    torch.testing.assert_close(table(torch.tensor([2, 0])).features, torch.from_numpy(rows[[2, 0]]))
    assert table.state_dict() == {} and list(table.parameters()) == []
    with pytest.raises(ConfigError, match="features of width 4, but model.projection_dim=5"):
        Table(5, 1.0, str(tmp_path / "images.npy"))
    with pytest.raises(ConfigError, match="can not be read"):
        Table(4, 1.0, str(tmp_path / "absent.npy"))


def test_a_caption_that_was_not_encoded_is_told():
    tokenizer = RowTokenizer(["is red", "is blue"])
    assert tokenizer(["is blue", "is red"])["input_ids"].tolist() == [[1], [0]]
    with pytest.raises(DataError, match="no caption 'is green': choose cache=false"):
        tokenizer(["is green"])
