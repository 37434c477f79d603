"""Both towers of one CLIP: tiny ones made here give the very features of transformers and of open_clip."""

import logging
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmexpert.encoders import clip_source
from mmexpert.encoders.clip import ClipImage, ClipText
from mmexpert.encoders.clip_sizes import NAMES
from mmexpert.encoders.clip_source import one_load, read_tensors
from mmexpert.types import ConfigError, SourceError

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
TEXTS = ["a red circle", "a small blue square on the left", "circle", ""]


def image_tower(weights, **changes):
    keys = {
        "dim": None, "lr_scale": 0.05, "side": 32, "in_chans": 3, "mean": MEAN, "std": STD, "name": "ViT-B/32", "weights": str(weights),
        "backend": "auto", "layers": None, "norm": "batch", "freeze_backbone": False,
    }  # fmt: skip
    return ClipImage(**keys | {"weights": weights if weights is None else str(weights)} | changes).eval()


def text_tower(tokenizer, weights, **changes):
    keys = {
        "dim": None, "lr_scale": 0.05, "name": "ViT-B/32", "weights": weights if weights is None else str(weights), "backend": "auto",
        "layers": None, "max_length": 20, "freeze_backbone": False,
    }  # fmt: skip
    return ClipText(tokenizer=tokenizer, **keys | changes).eval()


def tokenizer_of(weights, length=20):
    return ClipText.tokenizer_for(TEXTS, {"name": "ViT-B/32", "weights": weights and str(weights), "backend": "auto", "max_length": length})


@pytest.fixture(scope="module")
def tokenizer(clip_folder):
    return tokenizer_of(clip_folder)


@pytest.fixture(scope="module")
def open_clip_rn50(save_clip_tokenizer, tmp_path_factory):
    """(model, file) of an RN50-type CLIP of open_clip at reduced size."""
    open_clip = pytest.importorskip("open_clip", reason="the extra mmexpert[openclip] is not installed")
    torch.manual_seed(0)
    model = open_clip.model.CLIP(
        24,
        open_clip.model.CLIPVisionCfg(layers=(1, 2, 1, 1), width=16, image_size=64),
        open_clip.model.CLIPTextCfg(context_length=20, vocab_size=60, width=64, heads=1, layers=2),
        quick_gelu=True,
    ).eval()
    for name, value in model.state_dict().items():
        if "bn" in name and value.is_floating_point():  # the last BatchNorm of a block begins at 0
            value.uniform_(0.5, 1.5)
    file = tmp_path_factory.mktemp("open_clip") / "rn50.safetensors"
    save_file(model.state_dict(), file)
    save_clip_tokenizer(file.parent)
    return model, file


def test_a_local_folder_gives_transformers_own_features_in_both_towers(clip_folder, tokenizer):
    from transformers import CLIPModel

    reference = CLIPModel.from_pretrained(clip_folder, local_files_only=True).eval()
    pictures, text = torch.randn(3, 3, 32, 32), tokenizer(TEXTS)
    image, words = image_tower(clip_folder), text_tower(tokenizer, clip_folder)
    with torch.no_grad():
        expected = reference.visual_projection(reference.vision_model(pictures).pooler_output)
        torch.testing.assert_close(image(pictures).features, expected, atol=1e-5, rtol=0)
        expected = reference.text_projection(reference.text_model(**text).pooler_output)
        torch.testing.assert_close(words(text).features, expected, atol=1e-5, rtol=0)
    assert image.dim == words.dim == 24 and expected.std(0).mean() > 0.05


def test_tokens_go_through_the_projection_and_the_mask_leaves_frame_and_padding_out(clip_folder, tokenizer):
    from transformers import CLIPModel

    reference = CLIPModel.from_pretrained(clip_folder, local_files_only=True).eval()
    pictures, text = torch.randn(2, 3, 32, 32), tokenizer(TEXTS)
    with torch.no_grad():
        hidden = reference.vision_model(pictures).last_hidden_state[:, 1:]
        expected = reference.visual_projection(reference.vision_model.post_layernorm(hidden))
        torch.testing.assert_close(image_tower(clip_folder)(pictures).sequence, expected, atol=1e-5, rtol=0)
        encoding = text_tower(tokenizer, clip_folder)(text)
    lengths = text["attention_mask"].sum(1)
    assert encoding.mask.sum(1).tolist() == (lengths - 2).tolist() and not encoding.mask[:, 0].any()
    assert encoding.sequence.shape == (4, text["input_ids"].shape[1], 24) and not encoding.sequence[~encoding.mask].any()


def test_a_text_alone_equals_the_text_in_a_batch_of_longer_ones(clip_folder, tokenizer):
    tower = text_tower(tokenizer, clip_folder)
    torch.testing.assert_close(tower(tokenizer(TEXTS)).features[2:3], tower(tokenizer(TEXTS[2:3])).features, atol=1e-6, rtol=1e-5)


def test_an_open_clip_resnet_file_gives_open_clips_own_features(open_clip_rn50):
    model, file = open_clip_rn50
    tokenizer = tokenizer_of(file)
    image, words = image_tower(file, side=64), text_tower(tokenizer, file)
    pictures, text = torch.randn(3, 3, 64, 64), tokenizer(TEXTS)
    length = text["input_ids"].shape[1]
    ids = nn.functional.pad(text["input_ids"] * text["attention_mask"], (0, 20 - length))  # open_clip pads with 0 to its full length
    with torch.no_grad():
        torch.testing.assert_close(image(pictures).features, model.encode_image(pictures), atol=1e-5, rtol=1e-5)
        ends = text["attention_mask"].sum(1) - 1
        assert torch.equal(ids.argmax(1), ends)  # its end-of-text is the largest id, as in OpenAI's vocabulary
        torch.testing.assert_close(words(text).features, model.encode_text(ids), atol=1e-5, rtol=1e-5)
    assert image(pictures).sequence.shape == (3, 4, 24)
    assert image.sizes.layers == (1, 2, 1, 1)


def test_a_cell_of_a_resnet_is_what_attention_to_it_alone_would_give(open_clip_rn50):
    model, file = open_clip_rn50
    tower = image_tower(file, side=64)
    grid = torch.randn(1, 512, 2, 2)
    _, cells = tower._attention_pool(grid)
    pool = model.visual.attnpool
    expected = pool.c_proj(pool.v_proj(grid[0, :, 1, 0]))  # row 1, column 0 is the third in raster order
    torch.testing.assert_close(tower.projection(cells)[0, 2], expected, atol=1e-5, rtol=1e-5)


def test_an_open_clip_vit_file_gives_open_clips_own_features(tmp_path):
    open_clip = pytest.importorskip("open_clip", reason="the extra mmexpert[openclip] is not installed")
    model = open_clip.model.CLIP(
        24,
        open_clip.model.CLIPVisionCfg(layers=2, width=64, image_size=32, patch_size=8),
        open_clip.model.CLIPTextCfg(context_length=20, vocab_size=60, width=64, heads=1, layers=2),
        quick_gelu=True,
    ).eval()
    torch.save(model.state_dict(), tmp_path / "vit.pt")
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(image_tower(tmp_path / "vit.pt")(pictures).features, model.encode_image(pictures), atol=1e-5, rtol=1e-5)


def test_a_torchscript_archive_that_is_not_openais_is_refused(tmp_path):
    with pytest.warns(FutureWarning):  # torch's own word on TorchScript
        torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match="which is code, and not one of OpenAI's files"):
        read_tensors(tmp_path / "foreign.pt")
    with pytest.raises(SourceError, match=r"encoder\.image\.weights=.*foreign\.pt.*TorchScript"):
        image_tower(tmp_path / "foreign.pt")


@pytest.mark.parametrize(
    "name, content",
    [
        ("cut.safetensors", b"\x40\0\0\0\0\0\0\0{"),
        ("code.pt", pickle.dumps({"state_dict": print}, protocol=2)),
        ("cut.pt", pickle.dumps({"w": [1.0]}, protocol=2)[:9]),
        ("empty.pt", b""),
    ],
    ids=["cut.safetensors", "code.pt", "cut.pt", "empty.pt"],
)
def test_a_weight_file_that_is_damaged_or_holds_code_is_a_source_error_that_names_it(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=f"{name} can not be read as open_clip's form of a CLIP"):
        image_tower(tmp_path / name)


def test_two_towers_of_one_source_read_it_once_and_nothing_is_kept(clip_folder, tokenizer, monkeypatch):
    reads = []
    monkeypatch.setattr(clip_source, "read_tensors", lambda file: reads.append(file) or read_tensors(file))
    with one_load():
        image_tower(clip_folder)
        text_tower(tokenizer, clip_folder)
        assert len(reads) == 1
    assert clip_source._LOADED.get() is None
    image_tower(clip_folder)
    assert len(reads) == 2


def test_another_width_adds_a_linear_map_without_bias(clip_folder, tokenizer):
    own, wider = image_tower(clip_folder, dim=24), image_tower(clip_folder, dim=40)
    assert own.joint.map is None and wider.dim == 40
    pictures = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(wider(pictures).features, own(pictures).features @ wider.joint.map.weight.T, atol=1e-5, rtol=1e-5)
    assert wider.joint.map.bias is None
    assert text_tower(tokenizer, clip_folder, dim=40)(tokenizer(TEXTS)).sequence.shape[2] == 40


@pytest.mark.parametrize("name", NAMES)
def test_every_name_builds_offline_at_reduced_depth_with_quickgelu(name):
    """Widths by the table; activation x * sigmoid(1.702 x) in every ViT and text tower."""
    row = NAMES[name]
    tokenizer = tokenizer_of(None)
    side = 64 if row.image.is_resnet else 2 * row.image.patch
    image = image_tower(None, name=name, layers=1, side=side)
    words = text_tower(tokenizer, None, name=name, layers=1)
    features = image(torch.randn(1, 3, side, side))
    assert features.features.shape == words(tokenizer(TEXTS[:1])).features.shape == (1, row.image.joint)
    assert features.sequence.shape == (1, 4, row.image.joint)
    x = torch.linspace(-3, 3, 13)
    for tower in (words,) if row.image.is_resnet else (words, image):
        torch.testing.assert_close(tower.model.encoder.layers[0].mlp.activation_fn(x), x * torch.sigmoid(1.702 * x))
    assert len(words.model.encoder.layers) == 1 and words.projection.in_features == row.text.width


def test_the_table_is_openais():
    """retrieval.md section 3: image width / joint width, text width and heads, side."""
    expected = {
        "ViT-B/32": (768, 512, 512, 8, 224), "ViT-B/16": (768, 512, 512, 8, 224), "ViT-L/14": (1024, 768, 768, 12, 224),
        "RN50": (2048, 1024, 512, 8, 224), "RN101": (2048, 512, 512, 8, 224), "RN50x4": (2560, 640, 640, 10, 288),
    }  # fmt: skip
    found = {n: (r.image.pooled, r.image.joint, r.text.width, r.text.heads, r.image.side) for n, r in NAMES.items()}
    assert found == expected
    assert all((r.text.layers, r.text.positions, r.text.vocabulary) == (12, 77, 49_408) for r in NAMES.values())


@pytest.mark.parametrize("weights", ["pretrained", "no/such-model", "somewhere/else/file.pt"])
def test_weights_that_are_nowhere_end_with_three_ways_and_never_with_random_ones(weights):
    with pytest.raises(SourceError, match=r"encoder\.image\.weights=.*Three ways on") as told:
        image_tower(weights)
    assert told.value.exit_code == 9
    with pytest.raises(SourceError, match=r"encoder\.text\.weights="):
        tokenizer_of(weights)


def test_a_tokenizer_that_can_not_be_read_and_one_that_is_not_there_are_source_errors(clip_folder, tmp_path):
    for file in clip_folder.iterdir():
        if "token" not in file.name and file.name not in ("vocab.json", "merges.txt"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SourceError, match="its tokenizer.*copy a CLIP tokenizer's files into"):
        tokenizer_of(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(SourceError, match="no tokenizer can be read from"):
        tokenizer_of(tmp_path)


def test_a_hub_id_is_fetched_file_by_file_and_a_line_that_breaks_is_a_source_error(clip_folder, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    asked = []

    def download(source, file):
        asked.append((source, file))
        if not (clip_folder / file).exists():
            raise EntryNotFoundError("404")
        return str(clip_folder / file)

    monkeypatch.setattr(clip_source, "find_source", lambda name, key, otherwise, files: name)  # as where the hub answers
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert image_tower("someone/their-clip").dim == 24
    assert asked == [("someone/their-clip", "config.json"), ("someone/their-clip", "model.safetensors")]
    with pytest.raises(SourceError, match=r"it holds no open_clip_config.json"):
        image_tower("someone/their-clip", backend="open_clip")

    def broken(source, file):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    with pytest.raises(SourceError, match=r"the hub did not give config.json \(no connection\)"):
        image_tower("someone/their-clip")


def test_weights_cut_short_are_an_error_and_never_partly_random(clip_folder, tmp_path):
    tensors = read_tensors(clip_folder / "model.safetensors")
    name = next(name for name in tensors if name.startswith("vision_model.encoder.layers.1"))
    save_file({key: value for key, value in tensors.items() if key != name}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((clip_folder / "config.json").read_text())
    with pytest.raises(SourceError, match="are absent"):
        image_tower(tmp_path)


def test_other_constants_and_another_side_are_warned_of(clip_folder, caplog):
    with caplog.at_level(logging.WARNING):
        tower = image_tower(clip_folder, mean=[0.5, 0.5, 0.5], side=48)
    assert "encoder.image.mean=[0.5, 0.5, 0.5], but the weights of" in caplog.text and "0.48145466" in caplog.text
    assert "made for 32; positions are interpolated" in caplog.text
    assert tower(torch.randn(1, 3, 48, 48)).sequence.shape == (1, 36, 24)
    caplog.clear()
    image_tower(clip_folder)
    assert "encoder.image" not in caplog.text


def test_a_frozen_backbone_leaves_the_projections_to_learn(clip_folder, tokenizer):
    image, words = image_tower(clip_folder, freeze_backbone=True), text_tower(tokenizer, clip_folder, freeze_backbone=True, dim=8)
    assert [name for name, p in image.named_parameters() if p.requires_grad] == ["projection.weight"]
    assert [name for name, p in words.named_parameters() if p.requires_grad] == ["projection.weight", "joint.map.weight"]
    assert image.frozen_modules() == [image.model]


def test_sizes_that_were_saved_build_the_tower_without_a_source(clip_folder, tokenizer, tmp_path):
    for build, name in ((image_tower, "image"), (lambda *a, **k: text_tower(tokenizer, *a, **k), "text")):
        tower = build(clip_folder)
        tower.save_backbone(tmp_path / name)
        again = build(None, name=str(tmp_path / name))
        again.load_state_dict(tower.state_dict())
        assert again.sizes == tower.sizes


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"name": "ViT-H/14", "weights": None}, r"encoder\.image\.name=ViT-H/14: choose ViT-B/32"),
        ({"backend": "jax"}, "choose auto, transformers, open_clip"),
        ({"layers": 1}, r"layers=1 is for weights=null"),
        ({"in_chans": 1}, "a CLIP takes 3 channels"),
        ({"side": 30}, "a multiple of the patch, 8"),
        ({"norm": "group"}, "choose batch or frozen"),
        ({"name": "RN50", "weights": "pretrained", "backend": "transformers"}, "there is no such form of RN50"),
    ],
)
def test_impossible_keys_are_refused_by_name(clip_folder, changes, message):
    with pytest.raises(ConfigError, match=message):
        image_tower(**{"weights": clip_folder} | changes)


def test_longer_texts_than_the_tower_takes_are_an_error(clip_folder, tokenizer):
    with pytest.raises(ConfigError, match=r"encoder\.text\.max_length=77: the tower takes at most 20"):
        text_tower(tokenizer, clip_folder, max_length=77)
