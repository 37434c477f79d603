"""A model trained on pictures opens without its data set: it prepares pictures as its evaluation did, and classifies as its run."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import mmexpert
from mmexpert import build
from mmexpert.command_line import composed
from mmexpert.config import check
from mmexpert.training import train_run

FAST = ["trainer.epochs=1", "trainer.batch_size=8", "trainer.num_workers=0", "model.projection_dim=16", "encoder.image.side=32"]
SMALL_TEXT = ["encoder.text.bert.width=16", "encoder.text.bert.feedforward=32"]
CLASSES = {"fixed": "a stem that is fixed", "loose": "a stem that is loose", "broken": "a stem that is broken"}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Three classes of eight grey films of several sizes, one of them with 16 bits."""
    root, rng = tmp_path_factory.mktemp("films"), np.random.default_rng(0)
    for k, name in enumerate(CLASSES):
        (root / name).mkdir()
        for i in range(8):
            film = rng.integers(40 * k, 90 + 60 * k, (30 + i, 44 - i))
            film = (film * 150).astype(np.uint16) if i == 0 else film.astype(np.uint8)
            Image.fromarray(film).save(root / name / f"P{i}{k}.png")
    (root / "class_texts.json").write_text(json.dumps(CLASSES))
    return root


def trained(tmp_path_factory, *overrides):
    folder = tmp_path_factory.mktemp("outputs") / "run"
    plain = check(composed(*FAST, *overrides))
    train_run(plain, folder, list(overrides), ())
    return folder


@pytest.fixture(scope="module")
def folder_run(films, tmp_path_factory):
    """normalize=dataset: statistics that only the run knows; both head: texts and a linear map."""
    given = [f"dataset.root={films}", "dataset.normalize=dataset", "dataset.group_column=null", "dataset.channels=3", "model/head=both"]
    tower = ["encoder/image=conv", "encoder.image.channels=[8,12]"]
    run = trained(tmp_path_factory, "experiment=hip", "dataset=image_folder", *tower, *given, *SMALL_TEXT)
    moved = run.parent / "moved"
    shutil.copytree(run / "model", moved)  # no data set, no run beside it
    return run, moved


def test_pictures_of_every_form_get_the_evaluations_features_without_the_data_set(folder_run, films):
    run, moved = folder_run
    config = json.loads((run / "config.json").read_text())["config"]
    dataset = build.build_dataset(config)
    records = {i: dataset.records[i] for i in range(len(dataset))}
    from mmexpert.engine.folds_file import FILE, read_folds_info, stored_folds

    (fold,) = stored_folds(read_folds_info(run / FILE))
    dataset.fit(fold.parts(dataset)["train"])
    model = mmexpert.load(moved, device="cpu")
    with torch.inference_mode():
        served = torch.from_numpy(np.stack([dataset[(i, -1, 0)]["image"] for i in records]))
        expected = model.model.encode("image", served).features
    paths = [dataset.rows[record.id].path for record in records.values()]
    torch.testing.assert_close(model.encode_image(paths, normalize=False), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode_image([str(p) for p in paths], 1, normalize=False), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode_image([Image.open(p) for p in paths], 5, normalize=False), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode_image(served, 7, normalize=False), expected, atol=1e-5, rtol=0)
    arrays = [np.asarray(Image.open(p).convert("RGB")) for p in paths[1:8]]  # 8 bits
    torch.testing.assert_close(model.encode("image", arrays, normalize=False), expected[1:8], atol=1e-5, rtol=0)
    assert dataset.statistics[0].tolist() == model.config["preparation"]["image"]["mean"]


def test_the_checkpoint_holds_the_preparation_too(folder_run):
    from mmexpert.engine.checkpoint import disk

    run, moved = folder_run
    state = disk.read_state((run / "checkpoints" / "last").resolve() / disk.STATE)
    assert state["extra"]["preparation"] == json.loads((moved / "config.json").read_text())["preparation"]


def test_classify_gives_the_probabilities_of_the_runs_predictions(folder_run, films):
    run, moved = folder_run
    model = mmexpert.load(moved, device="cpu")
    with open(run / "predictions.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = model.classify([films / row["id"] for row in rows])
    stored = torch.tensor([[float(row[f"p_{name}"]) for name in model.class_names] for row in rows])
    torch.testing.assert_close(found, stored, atol=1e-5, rtol=0)
    assert set(model.class_names) == set(CLASSES) and len(rows) > 2


def test_other_class_texts_are_zero_shot_and_a_linear_head_refuses_them(folder_run, films):
    _, moved = folder_run
    model = mmexpert.load(moved, device="cpu")
    other = model.classify(films / "fixed" / "P10.png", {"fixed": "a stem that is fixed", "broken": ["a stem that is broken", "broken"]})
    assert other.shape == (1, 2) and other.sum() == pytest.approx(1)
    model.model.head = model.model.head.linear
    model.model.head.needs_class_texts = False
    with pytest.raises(TypeError, match="linear head, which knows its own classes alone"):
        model.classify([films / "fixed" / "P10.png"], {"a": "one", "b": "two"})
    with pytest.raises(TypeError, match="each with one or more sentences"):
        model.classify([], {"a": []})


def test_features_are_unit_rows_independent_of_the_batch_and_bf16_is_near(folder_run, films):
    _, moved = folder_run
    paths = sorted(films.glob("*/*.png"))
    model = mmexpert.load(moved, device="cpu")
    whole = model.encode_image(paths)
    torch.testing.assert_close(torch.cat([model.encode_image(path) for path in paths]), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(len(paths)))
    assert model.encode_image([]).shape == model.encode_image(torch.zeros(0, 3, 32, 32)).shape == (0, model.dim)
    half = mmexpert.load(moved, device="cpu", precision="bf16").encode_image(paths)
    assert half.dtype == torch.float32 and 0 < (half - whole).abs().max() < 0.05
    assert model.roles == ("image", "text") and model.dim == 16 and len(model.fingerprint) == 64


@pytest.mark.parametrize(
    "given, message",
    [
        (3, "picture 0 is int; accepted: a path, a PIL image, a uint8 array"),
        ([np.zeros((4, 4, 3))], r"picture 0 is float64 \[4, 4, 3\]; accepted"),
        ([np.zeros((4, 4, 3), np.uint8), None], "picture 1 is NoneType; accepted"),
        (torch.zeros(2, 3, 40, 40), r"float \[B, 3, 32, 32\], already prepared; this one is float32 \[2, 3, 40, 40\]"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), r"this one is uint8"),
    ],
)
def test_what_is_no_picture_is_a_type_error_that_names_what_is(folder_run, given, message):
    with pytest.raises(TypeError, match=message):
        mmexpert.load(folder_run[1], device="cpu").encode_image(given)


def test_other_roles_missing_files_and_unknown_precisions_are_told(folder_run):
    model = mmexpert.load(folder_run[1], device="cpu")
    for call in (lambda: model.encode("radar", []), lambda: model.encode_radar([]), lambda: model.encode("label", [])):
        with pytest.raises(TypeError, match="this model encodes image, text"):
            call()
    with pytest.raises(mmexpert.types.DataError, match="nowhere.png.*there is no such file"):
        model.encode_image("nowhere.png")
    with pytest.raises(mmexpert.types.ConfigError, match="precision=int8"):
        mmexpert.load(folder_run[1], precision="int8")


def test_scenes_go_through_the_stored_picture_transform(tmp_path_factory, tmp_path):
    sizes = ["dataset.images={train: 32, valid: 8, test: 8}", f"dataset.cache_dir={tmp_path}", "encoder.image.channels=[8,12]"]
    run = trained(tmp_path_factory, "experiment=image_text", *sizes, *SMALL_TEXT)
    config = json.loads((run / "config.json").read_text())["config"]
    dataset = build.build_dataset(config)
    model = mmexpert.load(run, device="cpu")
    indices = dataset.part("test")[::5]
    with torch.inference_mode():
        expected = model.model.encode("image", torch.from_numpy(np.stack([dataset[(i, -1, 0)]["image"] for i in indices]))).features
    pictures = [dataset.pictures[dataset.records[i].source] for i in indices]
    torch.testing.assert_close(model.encode_image(pictures, normalize=False), expected, atol=1e-5, rtol=0)
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    files = [tmp_path / f"{i}.png" for i in range(len(pictures))]
    torch.testing.assert_close(model.encode_image(files, normalize=False), expected, atol=1e-5, rtol=0)
    with pytest.raises(TypeError, match="this model has no classes"):
        model.classify(files)


def test_drawn_films_of_16_bits_are_prepared_as_they_were_served(tmp_path_factory, tmp_path):
    small = ["dataset.n_patients=48", "dataset.images_per_patient=1", "dataset.simulator.bit_depth=16", "dataset.simulator.side=32"]
    run = trained(tmp_path_factory, "experiment=hip", *small, f"dataset.cache_dir={tmp_path}", *SMALL_TEXT)
    dataset = build.build_dataset(json.loads((run / "config.json").read_text())["config"])
    model = mmexpert.load(run, device="cpu")
    for i in range(3):
        Image.fromarray(dataset.films[dataset.records[i].source]).save(tmp_path / f"{i}.png")
    with torch.inference_mode():
        expected = model.model.encode("image", torch.from_numpy(np.stack([dataset[(i, -1, 0)]["image"] for i in range(3)]))).features
    torch.testing.assert_close(model.encode_image([tmp_path / f"{i}.png" for i in range(3)], normalize=False), expected, atol=1e-5, rtol=0)


def test_a_run_on_both_towers_of_one_clip_opens_when_their_source_is_gone(films, clip_folder, tmp_path_factory):
    source = tmp_path_factory.mktemp("source") / "clip"
    shutil.copytree(clip_folder, source)
    towers = ["encoder/image=clip", "encoder/text=clip", f"encoder.image.weights={source}", f"encoder.text.weights={source}"]
    given = [f"dataset.root={films}", "dataset.normalize=encoder", "dataset.group_column=null", "dataset.channels=3"]
    length = ["encoder.text.max_length=20", "model.projection_dim=null"]
    run = trained(tmp_path_factory, "experiment=hip", "dataset=image_folder", *towers, *given, *length)
    source.rename(source.parent / "gone")
    model = mmexpert.load(run, device="cpu")
    assert model.dim == 24  # CLIP's own joint width
    with open(run / "predictions.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = model.classify([films / row["id"] for row in rows])
    stored = torch.tensor([[float(row[f"p_{name}"]) for name in model.class_names] for row in rows])
    torch.testing.assert_close(found, stored, atol=1e-5, rtol=0)


def test_hip_superclip_trains_on_a_folder_of_films_from_random_weights_and_opens_again(films, tmp_path_factory):
    random = ["encoder.image.weights=null", "encoder.text.weights=null", "encoder.text.layers=1", "trainer.max_steps=1", "cv=none"]
    run = trained(tmp_path_factory, "experiment=hip_superclip", f"dataset.root={films}", *random, "trainer.mixed_precision=no")
    metrics = json.loads((run / "metrics.json").read_text())
    model = mmexpert.load(run, device="cpu")
    assert model.classify(sorted(films.glob("*/*.png"))).shape == (24, 3) and 0 <= metrics["test/acc"] <= 1
