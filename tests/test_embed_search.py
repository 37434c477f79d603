"""embed writes whole indexes of pictures, sentences and clips, search finds what is in them, and both say what is wrong."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mmexpert import embed, loading, search
from mmexpert.types import ConfigError, DataError, RunFolderError, StorageError

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250), "grey": (90, 90, 90)}


class ColourModel:
    """Features of a picture: its mean colour; of a sentence: the colour that it names. encode_image as mmexpert.load has it."""

    config = {"encoder": {"image": {"side": 9}, "text": {"dim": 3}}}
    roles, dim, fingerprint = ("image", "text"), 3, "c0ffee"

    def encode_image(self, pictures):
        rows = [torch.from_numpy(np.asarray(Image.open(path).convert("RGB"), np.float32).mean((0, 1))) for path in pictures]
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)

    def encode_text(self, texts):
        return torch.tensor([next((COLOURS[word] for word in text.split() if word in COLOURS), (1, 1, 1)) for text in texts]).float()


class ComposingModel(ColourModel):
    def compose(self, reference, text):
        return self.encode_image(reference) + self.encode_text(text) / 125


@pytest.fixture
def colours(monkeypatch, tmp_path):
    """Pictures of four colours below photos/, the working folder, and a model that tells them apart."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load", lambda run, device, trust: ColourModel())
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for name, colour in COLOURS.items():
        Image.new("RGB", (9, 5), colour).save(tmp_path / "photos" / ("deep" if name == "blue" else ".") / f"{name}.png")
    return tmp_path


def run(command, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [command.__name__, *arguments])
    command.application()


def found(folder, name="s"):
    return json.loads((folder / "outputs" / "search" / name / "results.json").read_text())


def test_an_index_holds_sorted_names_unit_features_and_what_made_it(colours, monkeypatch):
    run(embed, monkeypatch, "run=r", "images=photos", "name=mine")
    folder = colours / "outputs" / "embed" / "mine"
    assert json.loads((folder / "names.json").read_text()) == ["deep/blue.png", "green.png", "grey.png", "red.png"]
    features = np.load(folder / "features.npy")
    assert features.dtype == np.float32 and np.allclose(np.linalg.norm(features, axis=1), 1) and features[0].argmax() == 2
    meta = json.loads((folder / "meta.json").read_text())
    assert meta | {"run": ""} == {
        "role": "image", "fingerprint": "c0ffee", "count": 4, "dim": 3, "root": str(colours / "photos"), "failed": 0, "run": "",
    }  # fmt: skip
    assert sorted(path.name for path in (colours / "outputs" / "embed").iterdir()) == ["mine"]  # no temporary folder is left


@pytest.mark.parametrize("query, first", [("text=a red circle, isn't it", "red.png"), ("image=photos/deep/blue.png", "deep/blue.png")])
def test_a_sentence_and_a_picture_find_the_picture_that_they_mean_first(colours, monkeypatch, query, first):
    run(embed, monkeypatch, "run=r", "images=photos")
    run(search, monkeypatch, "index=outputs/embed/photos", query, "k=2", "name=s")
    rows = found(colours)
    assert [row["rank"] for row in rows] == [1, 2] and rows[0]["name"] == first
    assert rows[0]["score"] >= rows[1]["score"] and rows[0]["score"] == pytest.approx(1, abs=0.01)
    with Image.open(colours / "outputs" / "search" / "s" / "sheet.png") as sheet:
        assert sheet.width == 3 * 180
        assert max(sheet.getcolors(100_000), key=lambda entry: entry[0])[1] in ((255, 255, 255), (245, 245, 245))


def test_texts_are_searched_by_a_picture_and_more_than_there_are_is_all_of_them(colours, monkeypatch, caplog):
    (colours / "said.txt").write_text("a green leaf\n\nthe blue sea\na green leaf\nünïcode red 中\n", encoding="utf-8")
    run(embed, monkeypatch, "run=r", "texts=said.txt")
    with caplog.at_level("INFO"):
        run(search, monkeypatch, "index=outputs/embed/said", "image=photos/green.png", "k=10", "name=s")
    rows = found(colours)
    assert [row["name"] for row in rows][0] == "a green leaf" and len(rows) == 3
    assert "k=10: the index has 3 rows, all of them are shown" in caplog.text


def test_an_unreadable_file_stops_with_its_name_once_or_is_listed(colours, monkeypatch, caplog):
    (colours / "photos" / "bad.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(DataError, match=r"photos/bad\.png: .*on_error=skip") as stopped:
        run(embed, monkeypatch, "run=r", "images=photos", "name=mine")
    assert str(stopped.value).count("bad.png") == 1
    assert not (colours / "outputs").exists()
    with caplog.at_level("INFO"):
        run(embed, monkeypatch, "run=r", "images=photos", "name=mine", "on_error=skip")
    assert caplog.messages[-1] == "4 images embedded, in outputs/embed/mine; 1 failed, listed in outputs/embed/mine/failed.csv"
    folder = colours / "outputs" / "embed" / "mine"
    rows = list(csv.DictReader((folder / "failed.csv").read_text().splitlines()))
    assert [row["file"] for row in rows] == ["bad.png"] and "cannot identify" in rows[0]["reason"]
    meta = json.loads((folder / "meta.json").read_text())
    assert (meta["count"], meta["failed"]) == (4, 1) and len(np.load(folder / "features.npy")) == 4


def test_the_fault_of_a_picture_names_it_once(tmp_path):
    from mmexpert.data.image_files import opened
    from mmexpert.embed_index import told

    (tmp_path / "bad.png").write_bytes(b"nothing")
    with pytest.raises(DataError) as fault:
        opened(tmp_path / "bad.png", str(tmp_path / "bad.png"))  # the record is the path where a loaded model reads a file
    assert told(str(tmp_path / "bad.png"), fault.value) == f"{tmp_path}/bad.png: no image that Pillow knows; replace or remove it"


def test_a_name_of_the_index_is_a_query_where_no_file_has_it(colours, monkeypatch):
    run(embed, monkeypatch, "run=r", "images=photos")
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("its features are stored"))
    run(search, monkeypatch, "index=outputs/embed/photos", "image=deep/blue.png", "name=s")
    assert found(colours)[0] == {"rank": 1, "name": "deep/blue.png", "score": pytest.approx(1, abs=1e-6)}
    monkeypatch.setattr(loading, "load", lambda run, device, trust: ComposingModel())
    run(search, monkeypatch, "index=outputs/embed/photos", "image=red.png", "text=but blue", "name=s")
    assert found(colours)[0]["name"] == "deep/blue.png"
    Image.new("RGB", (9, 5), COLOURS["green"]).save(colours / "red.png")  # a file comes before a name
    run(search, monkeypatch, "index=outputs/embed/photos", "image=red.png", "name=s")
    assert found(colours)[0]["name"] == "green.png"
    with pytest.raises(DataError, match="gone.png"):
        run(search, monkeypatch, "index=outputs/embed/photos", "image=gone.png", "name=s")


def test_a_write_that_fails_leaves_the_older_index_as_it_was(colours, monkeypatch):
    run(embed, monkeypatch, "run=r", "images=photos", "name=mine")
    before = (colours / "outputs" / "embed" / "mine" / "names.json").read_text()
    (colours / "photos" / "red.png").unlink()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(StorageError, match="No space left"):
        patched.setattr(np, "save", full)
        run(embed, patched, "run=r", "images=photos", "name=mine")
    assert (colours / "outputs" / "embed" / "mine" / "names.json").read_text() == before
    run(embed, monkeypatch, "run=r", "images=photos", "name=mine")  # and a good one replaces it
    assert len(json.loads((colours / "outputs" / "embed" / "mine" / "names.json").read_text())) == 3
    assert [path.name for path in (colours / "outputs" / "embed").iterdir()] == ["mine"]


def test_an_index_of_other_weights_is_refused(colours, monkeypatch):
    run(embed, monkeypatch, "run=r", "images=photos")
    monkeypatch.setattr(ColourModel, "fingerprint", "decaf")
    with pytest.raises(RunFolderError, match="made by the model c0ffee.*and this is decaf"):
        run(search, monkeypatch, "index=outputs/embed/photos", "text=red")


def test_text_and_image_together_need_a_composed_model(colours, monkeypatch):
    run(embed, monkeypatch, "run=r", "images=photos")
    query = ("index=outputs/embed/photos", "image=photos/red.png", "text=but blue", "name=s")
    with pytest.raises(ConfigError, match="need a composed model"):
        run(search, monkeypatch, *query)
    monkeypatch.setattr(loading, "load", lambda run, device, trust: ComposingModel())
    run(search, monkeypatch, *query)
    assert found(colours)[0]["name"] == "deep/blue.png"


@pytest.mark.parametrize(
    "command, arguments, message",
    [
        (embed, ["images=photos"], "run=RUN is needed"),
        (embed, ["run=r"], "one of images=FOLDER, texts=FILE, clips=FOLDER is needed, none is given"),
        (embed, ["run=r", "images=photos", "texts=x"], "images and texts is given"),
        (embed, ["run=r", "image=photos"], "did you mean 'images'"),
        (embed, ["run=r", "clips=photos"], "no radar tower: give images=FOLDER or texts=FILE"),
        (embed, ["run=r", "images=photos", "on_error=ignore"], "choose stop or skip"),
        (embed, ["run=r", "images=photos", "name=../x"], "name=../x: letters"),
        (embed, ["run=r", "images=nowhere"], "nowhere: there is no such folder"),
        (embed, ["run=r", "images=empty"], "no picture below it"),
        (embed, ["run=r", "texts=photos/red.png"], "can not be read as UTF-8 text"),
        (search, ["text=red"], "index=outputs/embed/NAME is needed"),
        (search, ["index=empty", "text=red"], "empty: no index"),
        (search, ["index=empty"], "text=SENTENCE, image=FILE"),
        (search, ["index=empty", "text=red", "k=0"], "k=0: a whole number"),
        (search, ["index=photos", "text=red", "kk=1"], "did you mean 'k'|There are"),
        (search, ["index=photos", "text=red", "K=3"], "K: this command has no such key: did you mean 'k'"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(colours, monkeypatch, command, arguments, message):
    (colours / "empty").mkdir()
    with pytest.raises((ConfigError, DataError, RunFolderError), match=message):
        run(command, monkeypatch, *arguments)


def test_a_query_that_can_not_be_read_is_named(colours, monkeypatch):
    run(embed, monkeypatch, "run=r", "images=photos")
    (colours / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match="broken.jpg"):
        run(search, monkeypatch, "index=outputs/embed/photos", "image=broken.jpg")


def test_a_folder_above_models_is_answered_with_those_inside_it(tmp_path):
    for place in ("default", "seed=1/fold_1"):
        (tmp_path / "quick" / place / "model").mkdir(parents=True)
        (tmp_path / "quick" / place / "model" / "model.safetensors").touch()
    with pytest.raises(RunFolderError, match="; load one of those inside it: .*/quick/default, .*/quick/seed=1/fold_1$"):
        loading.load(tmp_path / "quick")


def test_help_needs_no_torch(colours):
    import subprocess

    for module in ("embed", "search"):
        code = f"import sys; sys.argv[1:] = ['--help']; from mmexpert.{module} import main; main(); print('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.stdout.startswith("`python -m mmexpert.") and done.stdout.endswith("False\n"), done.stderr


@pytest.fixture(scope="module")
def radar_clips(tiny_run, tmp_path_factory):
    """The test part's clips as files: a folder a view, one of them as .npz; and their captions by name."""
    from mmexpert import build

    dataset = build.build_dataset(json.loads((tiny_run / "config.json").read_text())["config"])
    root, captions = tmp_path_factory.mktemp("clips"), {}
    for number, row in enumerate(dataset.part("test")[:8]):
        views = dataset.clip(dataset.records[row], -1, None)
        name = f"s/{number}"
        if number == 5:
            name += ".npz"
            (root / "s").mkdir(exist_ok=True)
            np.savez(root / name, **views)
        else:
            for view, values in views.items():
                (root / "s" / view).mkdir(parents=True, exist_ok=True)
                np.save(root / "s" / view / f"{number}.npy", values)
        captions[name] = dataset.records[row].captions[0]
    return root, captions


def test_radar_clips_are_embedded_from_both_forms_and_a_clip_finds_itself(tiny_run, radar_clips, tmp_path, monkeypatch):
    root, captions = radar_clips
    monkeypatch.chdir(tmp_path)
    run(embed, monkeypatch, f"run={tiny_run}", f"clips={root}", "name=clips", "device=cpu")
    index = tmp_path / "outputs" / "embed" / "clips"
    assert json.loads((index / "names.json").read_text()) == sorted(captions)
    clips = [(root / "s" / "doppler_time" / "3.npy", "s/3"), (root / "s" / "3", "s/3"), (root / "s" / "5.npz", "s/5.npz")]
    for query, name in [*clips, ("s/3", "s/3"), ("s/5.npz", "s/5.npz")]:  # names of the index too
        run(search, monkeypatch, f"index={index}", f"clip={query}", "name=s", "k=3", "device=cpu")
        assert found(tmp_path)[0]["name"] == name and found(tmp_path)[0]["score"] == pytest.approx(1, abs=1e-5)
    with Image.open(tmp_path / "outputs" / "search" / "s" / "sheet.png") as sheet:
        assert len(sheet.convert("L").getcolors()) > 50  # heat maps, not grey cells


def test_scores_of_a_sentence_are_the_loaded_models_cosines(tiny_run, radar_clips, tmp_path, monkeypatch):
    root, captions = radar_clips
    monkeypatch.chdir(tmp_path)
    run(embed, monkeypatch, f"run={tiny_run}", f"clips={root}", "name=clips")
    text = captions["s/2"]
    run(search, monkeypatch, "index=outputs/embed/clips", f"text={text}", "name=s")
    model = loading.load(tiny_run, "cpu")
    from mmexpert.embed_inputs import read_clip

    for row in found(tmp_path):
        clip = model.encode_radar(read_clip(root / row["name"], ("range_time", "doppler_time", "azimuth_time")))
        assert row["score"] == pytest.approx(float(model.similarity(model.encode_text(text), clip)), abs=1e-5)


def test_a_broken_clip_is_told_by_its_name_and_file(tiny_run, radar_clips, tmp_path, monkeypatch):
    import shutil

    root = shutil.copytree(radar_clips[0], tmp_path / "clips")
    np.save(root / "s" / "doppler_time" / "4.npy", np.full((128, 40), np.nan, np.float32))
    monkeypatch.chdir(tmp_path)
    run(embed, monkeypatch, f"run={tiny_run}", "clips=clips", "on_error=skip")
    (row,) = csv.DictReader((tmp_path / "outputs" / "embed" / "clips" / "failed.csv").read_text().splitlines())
    assert row["file"] == "s/4" and "clips/s/4" in row["reason"] and "doppler_time/4.npy" in row["reason"]
    assert "holds nan" in row["reason"] and "clip 0" not in row["reason"]


def test_a_clip_without_one_of_the_models_views_is_named(tiny_run, radar_clips, tmp_path, monkeypatch):
    import shutil

    root = tmp_path / "clips"
    shutil.copytree(radar_clips[0], root)
    (root / "s" / "doppler_time" / "4.npy").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"clips/s/4: .*doppler_time/4\.npy"):
        run(embed, monkeypatch, f"run={tiny_run}", f"clips={root}")
    run(embed, monkeypatch, f"run={tiny_run}", f"clips={root}", "on_error=skip", "name=some")
    assert json.loads((tmp_path / "outputs" / "embed" / "some" / "meta.json").read_text())["failed"] == 1
    with pytest.raises(ConfigError, match="no image tower: give clips=FOLDER or texts=FILE"):
        run(embed, monkeypatch, f"run={tiny_run}", f"images={root}")
