"""The source's configurations become lines of mmexpert.train that say why, and a fault in one of them stops all."""

import importlib
import json
import re
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from mmexpert.build import build_dataset
from mmexpert.command_line import composed, prepare_arguments
from mmexpert.config import check, instantiate

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "../shared/source/3-superclip-hip-prosthesis.md").resolve()
TEXTS = "class_texts_hip_prosthesis.json"
EXAMPLE = {
    "image_encoder_name": "resnet18", "text_encoder_name": "clip:ViT-B/32", "embed_dim": 512, "batch_size": 32, "epochs": 100,
    "learning_rate": 1e-4, "weight_decay": 0.01, "temperature": 0.07, "img_size": 224, "augmentation": "standard", "num_workers": 4,
    "use_amp": True, "gpu_id": 0, "save_best": True, "use_cv": True, "n_splits": 5, "random_state": 42, "early_stopping_patience": 10,
    "early_stopping_min_delta": 0.001, "early_stopping_monitor": "val_loss", "class_texts_file": TEXTS, "use_weighted_sampling": True,
    "weight_method": "inverse_freq", "weight_smooth_factor": 1.0, "use_superclip_loss": True, "class_loss_weight": 1.0,
    "contrastive_loss_weight": 1.0,
}  # fmt: skip
FROM_EXAMPLE = {
    "dataset=image_folder", "model.query=image", "evaluator=classification", "encoder/image=timm", "encoder.image.name=resnet18",
    "encoder.image.side=224", "encoder/text=clip", "encoder.text.name=ViT-B/32", "model.projection_dim=512", "model/head=text",
    "loss=superclip", "loss.class_loss_weight=1.0", "loss.contrastive_loss_weight=1.0", "loss.temperature=0.07",
    "dataset.augmentation=standard", "dataset.balance.method=inverse_freq", "dataset.balance.smooth=1.0", "dataset.balance.apply=sampler",
    "cv=stratified_group", "cv.n_splits=5", "cv.seed=42", "seed=42", "trainer.batch_size=32", "trainer.epochs=100", "trainer.num_workers=4",
    "optimizer.lr=0.0001", "optimizer.weight_decay=0.01", "trainer.mixed_precision=bf16", "trainer.early_stopping.min_delta=0.001",
    "trainer.early_stopping.monitor=valid/loss_total", "trainer.monitor=valid/map", "trainer.export_pth=true",
}  # fmt: skip
"""cross-validation.md section 9 and hip.md section 1, read off by hand for the source's full example."""


@pytest.fixture(scope="module")
def scripts() -> Iterator[None]:
    sys.path.insert(0, str(ROOT / "scripts"))
    yield
    sys.path.remove(str(ROOT / "scripts"))


@pytest.fixture
def importer(scripts: None) -> ModuleType:
    return importlib.import_module("import_superclip_config")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty present folder with class texts beside the JSON."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / TEXTS).write_text("{}", encoding="utf-8")
    return tmp_path


@pytest.fixture
def lines(importer: ModuleType, folder: Path, capsys: pytest.CaptureFixture):
    """Overrides of each printed line for a JSON text (or anything that json can write) and further arguments."""

    def call(configurations: object, *arguments: str) -> list[list[str]]:
        text = configurations if isinstance(configurations, str) else json.dumps(configurations)
        (folder / "train_clip_config.json").write_text(text, encoding="utf-8")
        assert importer.main(["train_clip_config.json", *arguments]) == 0
        return printed(capsys.readouterr().out)

    return call


@pytest.fixture
def fault(importer: ModuleType, folder: Path, capsys: pytest.CaptureFixture):
    """The message for a JSON text that is refused; nothing may be printed for it."""

    def call(text: str, *arguments: str) -> str:
        (folder / "c.json").write_text(text, encoding="utf-8")
        assert importer.main(["c.json", *arguments]) == 2
        said = capsys.readouterr()
        assert said.out == "" and not (folder / "outputs").exists()
        return said.err

    return call


def printed(text: str) -> list[list[str]]:
    commands = [shlex.split(row) for row in text.splitlines() if row and not row.startswith("#")]
    assert all(words[:3] == ["python", "-m", "mmexpert.train"] for words in commands)
    return [words[3:] for words in commands]


def blocks(language: str, begin: str) -> list[str]:
    """Code blocks of the source document."""
    if not DOCUMENT.is_file():
        pytest.skip(f"{DOCUMENT} is not here")
    found = re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    return [block for block in found if block.startswith(begin)]


def test_the_sources_two_lists_become_the_lines_of_the_table(lines):
    first, second = (lines(text) for text in blocks("json", "["))
    assert len(first) == len(second) == 1
    assert set(first[0]) >= FROM_EXAMPLE | {"trainer.early_stopping.patience=null", "name=resnet18_clip_ViT-B_32"}
    assert set(second[0]) >= FROM_EXAMPLE | {"trainer.early_stopping.patience=10"}
    assert len(set(first[0]) ^ set(second[0])) == 2  # patience alone differs


def test_the_sources_command_with_a_config_file_is_that_file_with_its_folders(importer, folder, capsys):
    (folder / "train_clip_config.json").write_text(blocks("json", "[")[0], encoding="utf-8")
    assert importer.main(["--command", blocks("bash", "python train_clip.py")[0]]) == 0
    (overrides,) = printed(capsys.readouterr().out)
    assert set(overrides) >= FROM_EXAMPLE | {"dataset.root=single_label_data", "name=superclip_test_resnet18_clip_ViT-B_32"}


def test_the_sources_command_without_a_file_is_read_from_its_flags(importer, folder, capsys):
    assert importer.main(["--command", blocks("bash", "python train_clip.py")[1]]) == 0
    text = capsys.readouterr().out
    (overrides,) = printed(text)
    assert set(overrides) >= FROM_EXAMPLE - {"trainer.mixed_precision=bf16"} | {"trainer.mixed_precision=no"}  # --use-amp is not given
    assert "batch_size=32 (not given)" in text and "n_splits=5 (not given)" not in text


def test_flags_stand_before_the_keys_of_the_file_and_several_configurations_need_multi_config(importer, folder, capsys):
    (folder / "c.json").write_text(json.dumps([EXAMPLE, EXAMPLE]), encoding="utf-8")
    assert importer.main(["--command", "python train_clip.py --config-file c.json"]) == 2
    assert "holds 2 configurations: add --multi-config" in capsys.readouterr().err
    assert importer.main(["--command", "python3 train_clip.py --config-file=c.json --multi-config --epochs 7 --use-amp false"]) == 0
    for overrides in printed(capsys.readouterr().out):
        assert {"trainer.epochs=7", "trainer.mixed_precision=no", "trainer.batch_size=32"} <= set(overrides)


CHANGES = {
    "image_encoder_name": ("clip:RN50x4", ["encoder/image=clip", "encoder.image.name=RN50x4", "name=clip_RN50x4_clip_ViT-B_32"]),
    "text_encoder_name": ("bert/base", ["encoder/text=transformers", "encoder.text.name=bert/base", "name=resnet18_bert_base"]),
    "embed_dim": (256, ["model.projection_dim=256"]),
    "batch_size": (8, ["trainer.batch_size=8"]),
    "epochs": (3, ["trainer.epochs=3"]),
    "learning_rate": (1e-5, ["optimizer.lr=1e-05"]),
    "weight_decay": (0, ["optimizer.weight_decay=0"]),
    "temperature": (0.1, ["loss.temperature=0.1"]),
    "img_size": (96, ["encoder.image.side=96"]),
    "augmentation": ("strong", ["dataset.augmentation=strong"]),
    "num_workers": (0, ["trainer.num_workers=0"]),
    "use_amp": (False, ["trainer.mixed_precision=no"]),
    "save_best": (False, ["trainer.export_pth=true"]),
    "use_cv": (False, ["cv=none", "cv.seed=42"]),
    "n_splits": (10, ["cv.n_splits=10"]),
    "random_state": (7, ["seed=7", "cv.seed=7"]),
    "early_stopping_patience": (None, ["trainer.early_stopping.patience=null"]),
    "early_stopping_min_delta": (0.01, ["trainer.early_stopping.min_delta=0.01"]),
    "early_stopping_monitor": ("val_map", ["trainer.early_stopping.monitor=valid/map"]),
    "class_texts_file": (None, ["dataset.class_texts=auto"]),
    "use_weighted_sampling": (False, ["dataset.balance.apply=loss"]),
    "weight_method": ("effective_number", ["dataset.balance.method=effective_number"]),
    "weight_smooth_factor": (0.5, ["dataset.balance.smooth=0.5"]),
    "use_superclip_loss": (False, ["loss=clip", "loss.temperature=0.07"]),
    "class_loss_weight": (1.5, ["loss.class_loss_weight=1.5"]),
    "contrastive_loss_weight": (0.8, ["loss.contrastive_loss_weight=0.8"]),
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_changed_key_changes_the_override_of_the_table(key, lines):
    value, expected = CHANGES[key]
    (overrides,) = lines([EXAMPLE | {key: value}])
    assert set(expected) <= set(overrides)
    named = [override.partition("=")[0] for override in overrides]
    assert len(named) == len(set(named)), "a key is set twice"


def test_without_folds_or_class_term_nothing_is_set_that_would_be_refused(lines):
    (overrides,) = lines(EXAMPLE | {"use_cv": False, "use_superclip_loss": False}, "--as-source")
    assert not [word for word in overrides if word.startswith(("cv.n_splits", "cv.selection", "cv.inner_val", "loss.class"))]
    assert "dataset.balance.apply=sampler" in overrides  # nothing is weighted twice without a class term


def test_every_choice_has_a_comment_and_what_is_left_out_is_marked(importer, folder, capsys):
    (folder / "c.json").write_text('{"image_encoder_name": "resnet50"}', encoding="utf-8")
    assert importer.main(["c.json"]) == 0
    said = capsys.readouterr()
    for key in EXAMPLE:
        assert f"{key}=" in said.out or key in ("class_texts_file", "class_loss_weight", "contrastive_loss_weight", "n_splits"), key
    assert "image_encoder_name=resnet50:" in said.out and "batch_size=32 (not given)" in said.out
    (overrides,) = printed(said.out)
    assert {"loss=clip", "cv=none", "trainer.mixed_precision=no", "dataset.balance.apply=loss"} <= set(overrides)  # switches are off
    assert "class_texts.json of the data folder is read" in said.err


def test_as_source_repeats_what_the_source_does_wrong(lines):
    (overrides,) = lines([EXAMPLE], "--as-source")
    assert {"cv.inner_val=0", "cv.selection=outer", "dataset.balance.apply=both"} <= set(overrides)


def test_half_precision_is_chosen_for_cards_without_bf16(lines):
    first, second = lines([EXAMPLE, EXAMPLE | {"use_amp": False}], "--precision", "fp16")
    assert "trainer.mixed_precision=fp16" in first and "trainer.mixed_precision=no" in second


def test_folds_part_images_with_a_warning_where_the_data_has_no_groups(importer, folder, capsys):
    (folder / "c.json").write_text(json.dumps(EXAMPLE), encoding="utf-8")
    (folder / "films").mkdir()
    assert importer.main(["c.json", "--data-dir", "films"]) == 0
    said = capsys.readouterr()
    assert "cv=stratified" in printed(said.out)[0] and "two films of one patient" in said.err
    (folder / "films" / "metadata.csv").write_text("\ufefffile,label,group\n", encoding="utf-8")
    assert importer.main(["c.json", "--data-dir", "films"]) == 0
    said = capsys.readouterr()
    assert "cv=stratified_group" in printed(said.out)[0] and said.err == ""


def test_class_texts_are_looked_for_beside_the_json_and_then_in_the_data_folder(lines, folder, importer, capsys):
    (folder / "films").mkdir()
    (folder / "films" / TEXTS).write_text("{}", encoding="utf-8")
    assert f"dataset.class_texts={folder / TEXTS}" in lines(EXAMPLE, "--data-dir", "films")[0]
    (folder / TEXTS).unlink()
    assert f"dataset.class_texts={folder / 'films' / TEXTS}" in lines(EXAMPLE, "--data-dir", "films")[0]
    assert importer.main(["train_clip_config.json", "--data-dir", "elsewhere"]) == 2
    error = capsys.readouterr().err
    assert str(folder / TEXTS) in error and str(folder / "elsewhere" / TEXTS) in error


def test_names_are_the_sources_after_the_output_folder_and_equal_ones_are_counted(lines):
    second = EXAMPLE | {"text_encoder_name": "clip:ViT-B/32_2"}  # what the second of two equal names would be called
    found = lines([EXAMPLE, second, EXAMPLE, EXAMPLE], "--output-dir", "checkpoints/clip models/")
    names = [next(word for word in overrides if word.startswith("name=")) for overrides in found]
    stem = "clip models_resnet18_clip_ViT-B_32"
    assert names == [f"name='{stem}{number}'" for number in ("", "_2", "_3", "_4")]


def test_comment_signs_inside_strings_stay_and_outside_go(lines):
    text = """
    // a list // twice
    [ /* over
       two lines, with "quotes" and } */
      {"image_encoder_name": "hf-hub://a/b", // "epochs": 5,
       "text_encoder_name": "/*x*/", "epochs": 3, /**/ "batch_size": 4 // the end
      ,}, // and so on
    ]"""
    (overrides,) = lines(text)
    assert {"encoder.image.name=hf-hub://a/b", "encoder.text.name='/*x*/'", "trainer.epochs=3", "trainer.batch_size=4"} <= set(overrides)


@pytest.mark.parametrize("name", ["it's here", "a=b, c", "中文 片子", r"C:\films", "x\\", "null", "1e5", '"q"', "[a]", ".5", "~x"])
def test_a_folder_of_any_name_reaches_the_configuration_whole(name, importer, folder, capsys):
    (folder / "c.json").write_text("{}", encoding="utf-8")
    assert importer.main(["c.json", "--data-dir", name]) == 0
    (overrides,) = printed(capsys.readouterr().out)
    root = next(word for word in prepare_arguments(overrides) if word.startswith("dataset.root="))
    assert composed("dataset=radhar", root).dataset.root == name


WRONG = {
    "unknown": (
        '[{"epochs": 1},\n {\n "epochs": 2,\n "learning_rat": 1e-3}]',
        ["configuration 2, line 4", "'learning_rat'", "'learning_rate'"],
    ),
    "far": ('{"lr": 1}', ["configuration 1, line 1", "unknown key 'lr'; the nearest known key is"]),
    "text": ('{\n"batch_size": "32"}', ["line 2", "batch_size is '32'", "a whole number"]),
    "float": ('{"epochs": 3.5}', ["epochs is 3.5", "a whole number"]),
    "switch": ('{"use_cv": 1}', ["use_cv is 1, expected true or false"]),
    "bool": ('{"n_splits": true}', ["n_splits is true, expected a whole number"]),
    "null": ('{"epochs": null}', ["epochs is null, expected a whole number"]),
    "infinite": ('{"temperature": 1e999}', ["temperature is inf, expected a number"]),
    "word": ('{"early_stopping_monitor": "val_los"}', ["val_los, expected one of val_loss, val_acc, val_map; the nearest is 'val_loss'"]),
    "brace": ('[\n{"epochs": 1,\n"use_amp": true\n]', ["configuration 1, line 4", "'{' of line 2", "'}' is missing", "'use_amp'"]),
    "brace between": ('[{"epochs": 1},\n{"use_cv": true,\n{"epochs": 3}]', ["configuration 2, line 3", "'{' of line 2", "'use_cv'"]),
    "brace at end": ('{"epochs": 1', ["'{' of line 1", "'epochs'"]),
    "bracket": ('[\n{"epochs": 1},\n{"epochs": 1}\n', ["configuration 2, line 3", "']' is missing", "'epochs'"]),
    "comma": ('{"epochs": 1\n"use_cv": true}', ["line 2", "',' is missing", "'epochs'"]),
    "list comma": ("[{} {}]", ["',' is missing between configurations 1 and 2"]),
    "string": ('{"epochs": 1, "augmentation": "standard\n}', ["line 1", "does not end on its line"]),
    "comment": ('{"epochs": 1 /* }', ["line 1", "no '*/'"]),
    "python": ('{"use_cv": True}', ["line 1", "true, false or null, found 'True}'"]),
    "nested": ('{"epochs": [1]}', ["expected a number", "found '[1]}'"]),
    "twice": ('{"epochs": 1,\n"epochs": 2}', ["line 2", "a second time, first in line 1"]),
    "rest": ("{} {}", ["the text should end here"]),
    "empty": ("", ["expected '{'", "the end of the text"]),
    "no list": ("[]", ["the list is empty"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_fault_is_named_with_file_configuration_line_and_nearest_key_and_nothing_runs(case, fault):
    text, expected = WRONG[case]
    message = fault(text, "--run", "--gpus", "0")
    for words in ["c.json, configuration", "Nothing has been run", *expected]:
        assert words in message


def test_all_faults_are_named_at_once_the_first_ten_and_their_number(fault):
    message = fault(json.dumps([{"epochs": "x"} for _ in range(12)]))
    assert message.count("epochs is") == 10 and "configuration 10" in message and "12 in all" in message


@pytest.mark.parametrize(
    "command, expected",
    [
        ("python train_clip.py --image-encodr x", "unknown flag '--image-encodr'; the nearest known flag is '--image-encoder'"),
        ("python train_clip.py \\\n --epochs many", "--command, configuration 1, line 2: epochs is many, expected a whole number"),
        ("python train_clip.py --epochs", "epochs is null"),
        ("python train_clip.py --data-dir", "--data-dir takes a value"),
        ("CUDA_VISIBLE_DEVICES=1 python train_clip.py", "'CUDA_VISIBLE_DEVICES=1' before train_clip.py"),
        ("python train.py", "expected 'python train_clip.py ...'"),
        ("python train_clip.py 'x", "line 1: No closing quotation"),
        ("python train_clip.py --config-file none.json", "none.json: No such file"),
    ],
)
def test_a_wrong_command_is_named_with_line_and_nearest_flag(command, expected, importer, folder, capsys):
    assert importer.main(["--command", command]) == 2
    said = capsys.readouterr()
    assert expected in said.err and said.out == ""


def test_a_line_break_inside_a_value_cannot_end_its_comment(importer, folder, capsys):
    (folder / "c.json").write_text(r'{"image_encoder_name": "x\nrm -rf y"}', encoding="utf-8")
    assert importer.main(["c.json", "--write", "lines.txt"]) == 0
    assert (folder / "lines.txt").read_text(encoding="utf-8") == capsys.readouterr().out
    assert "# image_encoder_name='x rm -rf y':" in (folder / "lines.txt").read_text(encoding="utf-8")


FAKE = """
import json, os, sys, time
from pathlib import Path
device, start = os.environ["CUDA_VISIBLE_DEVICES"], time.monotonic()
epochs = next(word for word in sys.argv if word.startswith("trainer.epochs="))
print("epochs", epochs, flush=True)
time.sleep(30 if epochs == "trainer.epochs=30" else 0.3)
Path(f"run_{epochs}.json").write_text(json.dumps([device, start, time.monotonic()]))
sys.exit(epochs == "trainer.epochs=1")
"""


@pytest.fixture
def program(importer: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for mmexpert.train that notes device and times, and fails where epochs is 1."""
    (folder / "fake.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.setattr(sys.modules["device_queue"], "PROGRAM", (sys.executable, "fake.py"))


def notes(folder: Path) -> list[tuple[str, float, float]]:
    return [tuple(json.loads(path.read_text())) for path in sorted(folder.glob("run_*.json"))]


def test_runs_share_the_devices_one_at_a_time_and_a_failure_does_not_stop_the_rest(importer, folder, program, capsys):
    (folder / "c.json").write_text(json.dumps([EXAMPLE | {"epochs": n} for n in (1, 2, 3, 4, 5)]), encoding="utf-8")
    assert importer.main(["c.json", "--run", "--gpus", "6,1"]) == 10
    rows = [row for row in capsys.readouterr().out.splitlines() if row.startswith("| resnet18")]
    assert ["failed (1)" in row for row in rows] == [True, False, False, False, False] and sum("| done |" in row for row in rows) == 4
    found = notes(folder)
    assert len(found) == 5 and {device for device, _, _ in found} == {"6", "1"}
    for device in "61":
        times = sorted((start, end) for used, start, end in found if used == device)
        assert all(end <= start for (_, end), (start, _) in zip(times, times[1:], strict=False))
    logs = sorted(path.name for path in (folder / "outputs/logs/clip_training").iterdir())
    pattern = r"resnet18_clip_ViT-B_32(_[2-5])?_gpu[61]_\d{8}_\d{6}\.log"
    assert len(logs) == 5 and all(re.fullmatch(pattern, name) for name in logs)
    assert "epochs trainer.epochs=" in (folder / "outputs/logs/clip_training" / logs[0]).read_text()


def test_without_gpus_a_run_goes_to_the_device_of_its_configuration(importer, folder, program, capsys):
    (folder / "c.json").write_text(
        json.dumps([EXAMPLE | {"epochs": n, "gpu_id": gpu} for n, gpu in ((2, 3), (3, 0), (4, 3))]), encoding="utf-8"
    )
    assert importer.main(["c.json", "--run"]) == 0
    assert [device for device, _, _ in notes(folder)] == ["3", "0", "3"]


def test_a_stop_is_handed_on_and_nothing_new_starts(importer, folder, program, capsys, monkeypatch):
    (folder / "c.json").write_text(json.dumps([EXAMPLE | {"epochs": 30}, EXAMPLE | {"epochs": 2}]), encoding="utf-8")

    def interrupted(run: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["device_queue"], "_look", interrupted)
    before = time.monotonic()
    assert importer.main(["c.json", "--run", "--gpus", "0"]) == 10
    assert time.monotonic() - before < 20  # the first run would sleep for 30
    out = capsys.readouterr().out
    assert "| stopped |" in out and "| not started |" in out and not list(folder.glob("run_*.json"))


def test_gpus_that_are_no_list_of_different_numbers_are_refused(importer, folder, capsys):
    for gpus in ("0,0", "a", ""):
        with pytest.raises(SystemExit):
            importer.main(["c.json", "--run", "--gpus", gpus])
        assert "expected different numbers" in capsys.readouterr().err


@pytest.mark.parametrize("change", [None, *CHANGES])
def test_the_printed_lines_compose(change, lines):
    (overrides,) = lines([EXAMPLE | ({change: CHANGES[change][0]} if change else {})])
    cfg = composed(*prepare_arguments(overrides))
    plain = check(cfg)
    assert not plain["encoder"].get("radar") and plain["model"]["query"] == "image"
    assert plain["optimizer"]["lr"] == (1e-5 if change == "learning_rate" else 1e-4)
    assert plain["name"].startswith(("resnet18_", "clip_RN50x4_")) and plain["trainer"]["monitor"] == "valid/map"


@pytest.mark.parametrize("own", [False, True])
def test_the_data_set_of_a_line_without_class_texts_is_built(own, lines, folder):
    for number, name in enumerate(("loose", "fixed")):
        (folder / "films" / name).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng([number, i]).integers(0, 255, (16, 16), np.uint8)
            Image.fromarray(pixels).save(folder / "films" / name / f"{i}.png")
    if own:
        (folder / "films/class_texts.json").write_text(json.dumps({"loose": "a stem that moves", "fixed": "a stem that holds"}))
    (overrides,) = lines([EXAMPLE | {"class_texts_file": None}], "--data-dir", "films")
    dataset = build_dataset(check(composed(*prepare_arguments(overrides))), ())
    assert dataset.classes.texts == ((("a stem that holds",), ("a stem that moves",)) if own else (("fixed",), ("loose",)))


@pytest.mark.parametrize("arguments", [[], ["--as-source"], ["--data-dir", "films"], ["--data-dir", "films", "--as-source"]])
@pytest.mark.parametrize("folds", [True, False])
def test_the_printed_folds_are_settings_that_training_takes(arguments, folds, lines, folder):
    (folder / "films").mkdir()  # without groups
    (overrides,) = lines([EXAMPLE | {"use_cv": folds}], *arguments)
    settings = instantiate(composed(*prepare_arguments(overrides)).cv, "cv")  # refuses what does not go together
    assert (settings.seed, settings.n_splits) == (42, 5 if folds else 1)
    assert settings.selection == ("outer" if folds and "--as-source" in arguments else "inner")
