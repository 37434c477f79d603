"""What the shell gives reaches Hydra whole, run folders are functions of the overrides, and errors say what to do."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mmexpert.command_line import prepare_arguments, run_folder, said_beside
from mmexpert.config import CONF_DIR
from mmexpert.key_hints import _leaves, groups
from mmexpert.old_flags import RENAMED_FLAGS
from mmexpert.types import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def call(*arguments: str, folder: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_the_run_folder_does_not_depend_on_the_order_of_the_overrides():
    assert (
        run_folder(["similarity=local", "loss=siglip"]) == run_folder(["loss=siglip", "similarity=local"]) == "loss=siglip,similarity=local"
    )


@pytest.mark.parametrize(
    "overrides, folder",
    [
        ([], "default"),
        (["experiment=hip", "trainer.num_workers=4", "cv.fold=3", "resume=never"], "default"),
        (["encoder/radar=vit"], "encoder.radar=vit"),
        (["+model.towers=x"], "model.towers=x"),
        (["dataset.views=[doppler]"], "dataset.views=[doppler]"),
        (["name=a", "dataset.name='中文'"], "dataset.name=中文"),
    ],
)
def test_the_run_folder_holds_what_can_change_a_number_and_nothing_else(overrides, folder):
    assert run_folder(overrides) == folder


def test_long_and_odd_overrides_get_a_hash_so_that_no_two_runs_meet():
    assert len(run_folder([f"dataset.root={'x' * 200}"])) == 12
    first, second = run_folder(["dataset.root=a b"]), run_folder(["dataset.root=a/b"])
    assert first.startswith("dataset.root=a_b_") and second.startswith("dataset.root=a_b_") and first != second


@pytest.mark.parametrize(
    "given, quoted",
    [
        ("run=outputs/radar/loss=siglip,similarity=combined", "run='outputs/radar/loss=siglip,similarity=combined'"),
        ("text=isn't it, red", r"text='isn\'t it, red'"),
        ("loss=clip,siglip", "loss=clip,siglip"),
        ("evaluator.k=[1,5]", "evaluator.k=[1,5]"),
        ("dataset.root=a=b", "dataset.root='a=b'"),
        ("init_from=null", "init_from=null"),
    ],
)
def test_values_that_hydras_grammar_refuses_are_quoted(given, quoted):
    assert prepare_arguments([given]) == [quoted]


def test_a_flag_of_the_source_systems_is_answered_with_the_new_key():
    with pytest.raises(ConfigError, match=r"--batch_size: write trainer.batch_size=64"):
        prepare_arguments(["--batch_size=64"])


@pytest.mark.parametrize("typed", [["--epochs", "3"], ["--epochs=3"], ["--max-epochs", "3", "seed=1"]])
def test_the_answer_to_an_old_flag_repeats_the_value_that_was_typed(typed):
    with pytest.raises(ConfigError, match="write trainer.epochs=3$"):
        prepare_arguments(typed)
    with pytest.raises(ConfigError, match="--epochs: write trainer.epochs=8$"):
        prepare_arguments(["--epochs", "seed=3"])
    assert prepare_arguments([]) == []


OLD_COMMANDS = Path(__file__).resolve().parents[1] / "docs" / "old_commands.md"
NAMED = [
    "model_path",
    "multi-config",
    "model_name",
    "workspace",
    "strategy",
    "config-file",
    "device",
    "projection_dim",
    "embed_dim",
    "use-cv",
]


def old_flags() -> list[str]:
    """The flags of the column `old` in docs/old_commands.md; those of launchers and of scripts here are none of a command's."""
    flags = set()
    for line in OLD_COMMANDS.read_text(encoding="utf-8").splitlines():
        old = line.split("|")[1] if line.startswith("|") else ""
        if not re.search("torchrun|srun", old):
            flags |= {flag[2:] for flag in re.findall(r"--[a-z][\w-]*", old)}
    return sorted(flags | set(NAMED))


@pytest.mark.parametrize("flag", old_flags())
def test_each_flag_that_the_page_of_old_commands_names_is_answered_with_what_to_write(flag):
    for form in (flag.replace("_", "-"), flag.replace("-", "_")):
        with pytest.raises(ConfigError, match=f"^--{form}: write .{{3,}}"):
            prepare_arguments([f"--{form}", "64"])


def test_every_key_that_an_old_flag_is_answered_with_can_be_written():
    everywhere = {name for group, options in groups().items() for option in options for name in _keys(group, option)}
    for flag, (key, _) in RENAMED_FLAGS.items():
        assert key == "hydra.run.dir" or key in groups() or key in everywhere, flag


def _keys(group: str, option: str) -> set[str]:
    below = {f"{group.replace('/', '.')}.{name}" for name in _leaves(Path(CONF_DIR) / group / f"{option}.yaml")}
    return below | set(_leaves(Path(CONF_DIR) / "train.yaml"))


@pytest.mark.parametrize("flag", ["--out", "--frobnicate", "--frobnicate=3", "--no-such-thing"])
def test_any_other_flag_is_told_how_keys_are_written(flag):
    with pytest.raises(ConfigError, match="There is no such flag; keys are written key=value, such as trainer.epochs=8, and --help"):
        prepare_arguments(["seed=1", flag])
    assert prepare_arguments(["seed=1", flag], by_argparse=True) == ["seed=1", flag]  # a script's own


def test_a_flag_with_the_name_of_a_key_is_answered_with_that_key():
    with pytest.raises(ConfigError, match="--log-every: did you mean 'trainer.log_every'. keys are written"):
        prepare_arguments(["--log-every", "3"])


@pytest.mark.parametrize("arguments", [["--cfg", "job"], ["--multirun", "seed=1,2"], ["--info=all"], ["-m"], ["--config-dir", "x"]])
def test_hydras_own_flags_pass(arguments):
    assert prepare_arguments(arguments) == arguments


def test_a_literal_secret_on_the_command_line_is_refused_before_hydra_stores_it():
    with pytest.raises(ConfigError, match="tracker.api_key: a secret"):
        prepare_arguments(["tracker.api_key=abcdef"])
    assert prepare_arguments(["encoder.text.max_tokens=9"]) == ["encoder.text.max_tokens=9"]


MISTAKES = {
    "los=clip": "did you mean 'loss'",
    "loss=clipp": "did you mean 'clip'",
    "loss.temprature=0.1": "did you mean 'temperature'",
    "dataset.metadata=x.csv": "no such key in the option that is chosen; there is one in dataset=image_folder",
    "encoder.text.name=x": "in encoder/text=clip, encoder/text=minilm, encoder/text=transformers",
    "trainer.epoch=3": "did you mean 'epochs'",
    "trainr.epochs=3": "trainr.epochs: there is no such key: did you mean 'trainer.epochs'?",
    "epochs=3": "did you mean 'trainer.epochs'?",
    "output_dir=x": "did you mean 'hydra.run.dir'?",
    "+trainer.foo=1": "trainer.foo: there is no such key",
    "trainer.epochs=many": "trainer.epochs",
    "resume=maybe": "resume=maybe: choose one of auto, must, never",
    "trust=[os]": "the standard library",
    "seed=-1": "seed=-1",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_misspelt_command_ends_with_code_2_and_the_nearest_name_before_torch_is_imported(mistake, tmp_path):
    script = (
        "import sys\nfrom mmexpert.train import main\n"
        f"sys.argv = ['train', {mistake!r}]\n"
        "try:\n    main()\nfinally:\n    print('torch imported:', 'torch' in sys.modules)"
    )
    ended = call("-c", script, folder=tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert MISTAKES[mistake] in ended.stderr
    assert "torch imported: False" in ended.stdout
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("flag", [["--help"], ["--cfg", "job"], ["dry_run=true"]])
def test_help_config_and_dry_run_import_neither_torch_nor_numpy(flag, tmp_path):
    script = (
        "import sys\nfrom mmexpert.train import main\n"
        f"sys.argv = ['train', *{flag!r}]\n"
        "try:\n    main()\nfinally:\n"
        "    heavy = [m for m in ('torch', 'numpy', 'transformers', 'timm', 'sklearn', 'wandb', 'accelerate') if m in sys.modules]\n"
        "    print('heavy imports:', heavy)"
    )
    ended = call("-c", script, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "heavy imports: []" in ended.stdout


def test_help_lists_the_groups_with_their_options_and_examples(tmp_path):
    ended = call("-m", "mmexpert.train", "--help", folder=tmp_path)
    assert "encoder/radar: conv1d, vit" in ended.stdout and "loss: clip" in ended.stdout
    assert ended.stdout.count("python -m mmexpert.train") >= 8


def test_the_stored_command_holds_trust_and_what_was_said_of_hydra_but_nothing_of_launcher_and_sweep(tmp_path, monkeypatch):
    from hydra.core.hydra_config import HydraConfig

    from mmexpert import train
    from mmexpert.engine.results import command

    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # put back at the end: Hydra leaves this test's there
    noted, folder = [], tmp_path / "lr=1"
    (tmp_path / "conf").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "mmexpert.training.train_run", lambda cfg, run, overrides, trust: noted.append(command([*overrides, *said_beside(trust)], 1))
    )
    said = ["trust=[theirpkg,other]", f"hydra.searchpath=[file://{tmp_path}/conf]", "loss=siglip", f"hydra.run.dir={folder}"]
    monkeypatch.setattr("sys.argv", ["train", *said, "hydra/launcher=basic", "hydra.sweep.dir=elsewhere", "hydra.launcher._target_=x"])
    train.main()
    (line,) = noted
    assert shlex.split(line)[:4] == ["python", "-m", "mmexpert.train", "loss=siglip"]
    assert set(shlex.split(line)[4:]) == {"trust=[theirpkg,other]", said[1], f"hydra.run.dir='{folder}'"}  # as Hydra's grammar wants it


def test_the_console_script_completes_options_as_readme_says(tmp_path):
    for page in ("README.md", "README.zh-CN.md"):
        assert 'eval "$(mmexpert-train -sc install=bash)"' in (ROOT / page).read_text(encoding="utf-8")
    script = "import sys\nfrom mmexpert.train import main\nsys.argv = ['mmexpert-train', '-sc', 'query=bash']\nmain()"
    line = "mmexpert-train encoder/radar="
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COMP_LINE": line, "COMP_POINT": str(len(line))}
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.stdout.split() == ["encoder/radar=conv1d", "encoder/radar=vit"], ended.stderr
