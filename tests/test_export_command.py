"""A trained model leaves the machine: a folder without data, graphs that other programs run, an upload that is looked through."""

import json
import logging
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import mmexpert
from mmexpert import export, loading
from mmexpert.command_line import composed
from mmexpert.config import check
from mmexpert.engine import graph
from mmexpert.training import train_run
from mmexpert.types import ConfigError, MmexpertError, RunFolderError

FAST = ["trainer.epochs=1", "trainer.batch_size=8", "trainer.num_workers=0", "model.projection_dim=16", "encoder.image.side=32"]
TOWERS = ["encoder/image=conv", "encoder.image.channels=[8,12]", "encoder.text.bert.width=16", "encoder.text.bert.feedforward=32"]


@pytest.fixture(scope="module")
def film_run(tmp_path_factory):
    """Two classes of eight films, whose folder is gone after the training."""
    root, rng = tmp_path_factory.mktemp("films"), np.random.default_rng(0)
    for k, name in enumerate(("fixed", "loose")):
        (root / name).mkdir()
        for i in range(8):
            Image.fromarray(rng.integers(60 * k, 90 + 90 * k, (36, 40)).astype(np.uint8)).save(root / name / f"P{i}{k}.png")
    (root / "class_texts.json").write_text(json.dumps({"fixed": "a stem that is fixed", "loose": "a stem that is loose"}))
    given = [f"dataset.root={root}", "dataset.normalize=dataset", "dataset.group_column=null", "dataset.channels=3", "model/head=both"]
    overrides = [*FAST, "experiment=hip", "dataset=image_folder", *TOWERS, *given]
    run = tmp_path_factory.mktemp("outputs") / "run"
    train_run(check(composed(*overrides)), run, overrides, ())
    shutil.rmtree(root)
    return run


@pytest.fixture
def command(monkeypatch, caplog):
    """Runs the command with these arguments."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["export", *arguments])
        with caplog.at_level(logging.INFO, "mmexpert"):
            export.application()

    return run


def clips(count):
    rng = np.random.default_rng(1)
    rows = {"range_time": 256, "doppler_time": 128, "azimuth_time": 128}
    return [{view: rng.random((n, 120 + 40 * i), np.float32) for view, n in rows.items()} for i in range(count)]


def onnx_features(file, inputs):
    session = pytest.importorskip("onnxruntime").InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(["features"], {entry.name: inputs[entry.name] for entry in session.get_inputs()})[0]


def padded(model, some):
    """Clips as a graph takes them: prepared, all of the length that FILE.json says."""
    (batch,) = loading.clip_batches(some, model.config["dataset"], len(some))
    spare = 496 - batch["mask"].shape[1]
    return {name: torch.nn.functional.pad(x, (0, spare)).numpy() for name, x in batch.items()}


def test_an_exported_model_opens_where_neither_run_nor_data_are_and_names_no_path(film_run, command, tmp_path):
    command(f"run={film_run}", f"out={tmp_path / 'mine'}")
    there = mmexpert.load(tmp_path / "mine", device="cpu")
    here = mmexpert.load(film_run, device="cpu")
    films = [np.full((40, 30, 3), 7 * i, np.uint8) for i in range(3)]
    assert torch.equal(there.classify(films), here.classify(films))
    assert torch.equal(there.encode_text(["a stem"]), here.encode_text(["a stem"]))
    text = (tmp_path / "mine" / "config.json").read_text()
    assert str(film_run.parent.parent) in (film_run / "model" / "config.json").read_text() and str(film_run.parent.parent) not in text
    assert "root" not in json.loads(text)["dataset"]
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "Licence:" in card and "trained by mmexpert on ImageFolder" in card and "| test | " in card
    assert "`python -m mmexpert.train" in card and "dataset.root=PATH" in card and "films" not in card


def test_the_best_checkpoint_is_exported_as_the_model_and_another_one_is_not(tiny_run, command):
    command(f"run={tiny_run}/checkpoints/best")
    card = (tiny_run / "export" / "best" / "model" / "README.md").read_text()
    assert card.count("Made by `") == card.count("| test | ") == 1
    kept = json.loads((tiny_run / "model" / "config.json").read_text())["checkpoint"]
    other = next(path for path in (tiny_run / "checkpoints").glob("epoch_*") if path.name != kept)
    with pytest.raises(RunFolderError, match="the figures of the model card are those of"):
        command(f"run={other}")
    shutil.rmtree(tiny_run / "export")


def test_without_out_the_model_goes_below_the_run_and_a_second_time_replaces_it(tiny_run, command):
    for _ in range(2):
        command(f"run={tiny_run}")
    clip = clips(1)
    stored, copy = mmexpert.load(tiny_run, "cpu"), mmexpert.load(tiny_run / "export" / "model", "cpu")
    assert torch.equal(stored.encode_radar(clip), copy.encode_radar(clip))
    assert sorted(path.name for path in (tiny_run / "export").iterdir()) == ["model"]
    shutil.rmtree(tiny_run / "export")


@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_graphs_of_a_radar_run_agree_with_the_model_on_clips_of_any_number(tiny_run, command, tmp_path, form):
    if form == "onnx":
        pytest.importorskip("onnxscript")
    command(f"run={tiny_run}", f"format={form}", f"out={tmp_path}")
    model, suffix = mmexpert.load(tiny_run, "cpu"), graph.SUFFIXES[form]
    for some in (clips(1), clips(3)):
        inputs, file = padded(model, some), tmp_path / f"radar{suffix}"
        if form == "onnx":
            features = onnx_features(file, inputs)
        else:
            told = json.loads((tmp_path / "radar.pt2.json").read_text())["inputs"]
            features = torch.export.load(file).module()(*(torch.from_numpy(inputs[name]) for name in told)).detach().numpy()
        assert np.abs(features - model.encode_radar(some).numpy()).max() <= 1e-4
    texts = ["a person walks", "someone squats twice, then jumps to the left"]
    tokens = model.tokenizer.tokenizer(texts, padding="max_length", truncation=True, max_length=48, return_tensors="np")
    if form == "onnx":
        assert np.abs(onnx_features(tmp_path / "text.onnx", tokens) - model.encode_text(texts).numpy()).max() <= 1e-4
    told = json.loads((tmp_path / f"text{suffix}.json").read_text())
    assert told["inputs"]["input_ids"] == {"dtype": "int64", "shape": ["B", 48]} and told["parity"] <= 1e-4
    assert told["fingerprint"] == model.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{r}{suffix}{end}" for r in ("radar", "text") for end in ("", ".json")
    )


@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_the_graph_of_an_image_tower_goes_with_the_preparation_of_its_pictures(film_run, command, tmp_path, form):
    if form == "onnx":
        pytest.importorskip("onnxscript")
    file = tmp_path / f"films{graph.SUFFIXES[form]}"
    command(f"run={film_run}", f"format={form}", "role=image", f"out={file}")
    model = mmexpert.load(film_run, "cpu")
    prepared = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    inputs = {"image": prepared.numpy()}
    features = onnx_features(file, inputs) if form == "onnx" else torch.export.load(file).module()(prepared).detach().numpy()
    assert np.abs(features - model.encode_image(prepared).numpy()).max() <= 1e-4
    told = json.loads(file.with_name(f"{file.name}.json").read_text())
    assert told["preparation"] == model.config["preparation"]["image"] and told["inputs"]["image"]["shape"] == ["B", 3, 32, 32]


def test_a_graph_that_differs_from_the_model_is_not_written(film_run, tmp_path, monkeypatch):
    model = mmexpert.load(film_run, "cpu")
    encode = model._encode
    monkeypatch.setattr(model, "_encode", lambda *given: encode(*given) + 2e-4)
    with pytest.raises(MmexpertError, match=r"a\.pt2 differs from the model by 0\.0002"):
        model.export(tmp_path / "a.pt2", "image", format="torch")
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_its_extra_names_the_pip_line(film_run, tmp_path, monkeypatch):
    real = graph.importlib.util.find_spec
    monkeypatch.setattr(graph.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name))
    with pytest.raises(ConfigError, match=r"pip install 'mmexpert\[onnx\]'"):
        mmexpert.load(film_run, "cpu").export(tmp_path / "a.onnx", "image")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["format=model"], "run=RUN is needed"),
        (["run=R", "format=onx"], "choose one of model, torch, onnx"),
        (["run=R", "role=image"], "format=model is of all"),
        (["run=R", "rol=image"], "role"),
        (["run=R", "format=torch", "role=radar"], "this model encodes image, text"),
        (["run=R", "format=torch", "out=a.onnx"], r"a \.pt2 file of one role"),
    ],
)
def test_wrong_arguments_are_told(film_run, command, arguments, message):
    with pytest.raises(ConfigError, match=message):
        command(*(argument.replace("run=R", f"run={film_run}") for argument in arguments))


def test_a_save_spares_what_is_no_model(film_run, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match="something other than a model"):
        mmexpert.load(film_run, "cpu").save(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.fixture
def hub(monkeypatch):
    """Stands for the Hugging Face hub; holds what was sent."""
    import huggingface_hub

    class Hub:
        sent = []

        def create_repo(self, name, private, exist_ok):
            self.sent.append((name, private))

        def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
            self.sent.append((repo_id, sorted(allow_patterns)))

    Hub.sent = []
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    return Hub


def test_a_push_shows_and_sends_the_files_of_the_model_alone_to_a_private_place(film_run, hub, caplog):
    with caplog.at_level(logging.INFO, "mmexpert"):
        address = mmexpert.load(film_run, "cpu").push("me/films")
    assert address == "https://huggingface.co/me/films"
    (place, private), (_, files) = hub.sent
    assert (place, private) == ("me/films", True)
    assert {"README.md", "classes.json", "config.json", "model.safetensors", "tokenizer/tokenizer.json"} <= set(files)
    told = "\n".join(record.message for record in caplog.records)
    assert all(file in told for file in files)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("README.md", "trained on /data/hospital/films", "README.md holds the path /data/hospital/films"),
        ("README.md", r"from C:\Users\me\films", "holds the path"),
        ("README.md", "token hf_abcdefghijklmnopqrstuvwx", "a key of a service"),
        ("README.md", "our password is hunter2hunter2", "a secret of the environment"),
        ("config.json", {"metrics": {"note": "/home/me/films/a.png"}}, "holds the path /home/me/films/a.png"),
        ("config.json", {"versions": {"api_key": "abc"}}, "the name of a secret"),
        ("patients.csv", "name,born", "patients.csv is no file of a model"),
        ("tokenizer/sub/films.npz", "x", "is no file of a model"),
    ],
)
def test_a_push_with_a_secret_or_a_path_sends_nothing(film_run, tmp_path, hub, monkeypatch, file, content, message):
    monkeypatch.setenv("FILM_ARCHIVE_PASSWORD", "hunter2hunter2")
    folder = tmp_path / "model"
    mmexpert.load(film_run, "cpu").save(folder)
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        content = json.dumps(json.loads((folder / file).read_text()) | content)
    (folder / file).write_text(content)
    with pytest.raises(ConfigError, match="nothing is sent") as refused:
        mmexpert.load(folder, "cpu").push("me/films")
    assert message in str(refused.value) and "hunter2" not in str(refused.value)
    assert hub.sent == []
