"""Every command in README and docs is one that the programs of today understand, and the parts that docs show work."""

import ast
import importlib
import math
import re
import sys
import types
from collections.abc import Iterator
from functools import cache
from itertools import dropwhile
from pathlib import Path
from typing import Any

import pytest
import torch
from documented import PAGES, ROOT, commands_of, documented_commands, files_of, sweep_jobs
from omegaconf import OmegaConf
from PIL import Image

from mmexpert.command_line import composed, prepare_arguments
from mmexpert.config import check, instantiate
from mmexpert.own_keys import own_and_overrides, own_values
from mmexpert.types import DataError

COMMANDS = documented_commands()
STORED = {  # runs that `run=RUN` may stand for: preset -> what else its command needs
    "radar": [],
    "radhar": ["dataset.root=DIR"],
    "hip_superclip": ["dataset.root=DIR"],
    "image_text": [],
    "cir_combiner": [],
    "cir_finetune": ["dataset=cirr", "dataset.root=DIR"],
}


@pytest.fixture(scope="module", autouse=True)
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the files of docs/adding_parts.md: losses of this package, and a package of somebody else's."""
    folder = tmp_path_factory.mktemp("parts")
    for name, content in files_of((ROOT / "docs/adding_parts.md").read_text(encoding="utf-8")).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    for package in ("theirpkg", "theirpkg/conf"):
        (folder / package / "__init__.py").touch()
    losses = [types.ModuleType(f"mmexpert.losses.{file.stem}") for file in sorted((folder / "mmexpert/losses").glob("*.py"))]
    for loss in losses:
        exec((folder / f"{loss.__name__.replace('.', '/')}.py").read_text(encoding="utf-8"), loss.__dict__)
        sys.modules[loss.__name__] = loss
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if sys.modules[name] in losses or name.split(".")[0] == "theirpkg"]:
        del sys.modules[name]


@cache
def stored(preset: str) -> dict[str, Any]:
    return OmegaConf.to_container(composed(f"experiment={preset}", *STORED[preset]), resolve=True)


def launched(words: list[str]) -> list[str]:
    """What a launcher hands on: [module or script, its arguments]. The launcher's own options are checked by its parser."""
    words = list(dropwhile(lambda word: "=" in word, words))  # variables of the environment
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        given = get_args_parser().parse_args(words[1:])
    elif words[0] == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        given = launch_command_parser().parse_args(words[2:])
        assert given.config_file is None or (ROOT / given.config_file).is_file()
    else:
        rest = words[words.index("python") + 1 :]
        return rest[1:] if rest[0] == "-m" else rest
    assert given.module
    return [given.training_script, *given.training_script_args]


def check_train(arguments: list[str], folder: Path) -> None:
    flags = [word for word in arguments if word.startswith("-")]
    assert set(flags) <= {"-m", "--help", "--cfg"}, flags
    overrides = [word for word in arguments if "=" in word and not word.startswith(("-", "trust="))]
    assert len(overrides) + len(flags) + sum(word.startswith("trust=") for word in arguments) + ("--cfg" in flags) == len(arguments)
    overrides = prepare_arguments(overrides)
    if not any(word.startswith("hydra.searchpath=") for word in overrides):
        overrides.append(f"hydra.searchpath=[file://{folder}/conf]")
    for job in sweep_jobs(overrides) if "-m" in flags else [overrides]:
        check(composed(*job))


def check_evaluate(arguments: list[str]) -> None:
    from mmexpert.evaluate import OWN_KEYS, overridden
    from mmexpert.feature_scores import settings

    own, overrides = own_and_overrides(prepare_arguments(arguments), OWN_KEYS)
    if own["features"] is not None:
        settings(Path(own["features"]), overrides, ())
        return
    check_stored(own["run"], overrides, overridden)


def check_submit(arguments: list[str]) -> None:
    from mmexpert.evaluate import overridden
    from mmexpert.submit import OWN_KEYS, configuration

    own, overrides = own_and_overrides(prepare_arguments(arguments), OWN_KEYS)
    if own["run"] is None:
        configuration(None, overrides)
    else:
        overridden(stored("cir_finetune"), overrides)


def check_stored(run: str, overrides: list[str], overridden: Any) -> None:
    """A run of a named preset takes the overrides; for `RUN` one of the presets must."""
    presets = [run.split("/")[1]] if run.startswith("outputs/") else list(STORED)
    faults = []
    for preset in presets:
        try:
            overridden(stored(preset), overrides)
            return
        except Exception as error:  # noqa: BLE001  told below
            faults.append(f"{preset}: {error}")
    raise AssertionError("\n".join(faults))


def check_module(name: str, arguments: list[str], folder: Path) -> None:
    module = importlib.import_module(name)
    command = name.rpartition(".")[2]
    if command == "train" or (command == "cv" and arguments[:1] == ["split"]):
        check_train(arguments[command == "cv" :], folder)
    elif command == "check_data":
        composed(*prepare_arguments(arguments), name="check_data")
    elif command in ("evaluate", "submit"):
        {"evaluate": check_evaluate, "submit": check_submit}[command](arguments)
    elif hasattr(module, "OWN_KEYS"):
        own_values(prepare_arguments(arguments), module.OWN_KEYS)
    else:
        module.arguments().parse_args(arguments)


def check_script(path: Path, arguments: list[str]) -> None:
    """The script's source is asked for its options: some scripts import what takes seconds."""
    options: dict[str, ast.Call] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            options |= {argument.value: node for argument in node.args if isinstance(argument, ast.Constant)}
    given = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    assert set(given) <= set(options) | {"--help"}, f"{path.name} knows {', '.join(options)}"
    needed = {name for name, node in options.items() if any(k.arg == "required" and k.value.value for k in node.keywords)}
    assert "--help" in given or needed <= set(given) or not arguments, f"{path.name} needs {needed}"
    if "overrides" in options:
        composed("dataset=hip_phantom", *(f"dataset.{word}" for word in arguments if "=" in word))


def check_command(words: list[str], folder: Path) -> None:
    """Raises where a program would refuse the command before it does anything."""
    target, *arguments = launched(words)
    if target.startswith("scripts/"):
        check_script(ROOT / target, arguments)
    else:
        check_module(target, arguments, folder)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_command_in_the_documentation_is_understood(command, parts):
    check_command(COMMANDS[command], parts)


def test_the_check_refuses_what_is_stale(parts):
    for line in [
        "python -m mmexpert.train loss=gone",
        "python -m mmexpert.train trainer.max_epochs=3",
        "python -m mmexpert.train -m loss=clip,gone",
        "python -m mmexpert.evaluate run=RUN evaluator.gone=1",
        "python -m mmexpert.embed run=RUN pictures=DIR",
        "torchrun --gone 2 -m mmexpert.train",
        "python scripts/make_scenes.py --out DIR --pictures 3",
        "python -m mmexpert.gone",
    ]:
        [words] = commands_of(f"    {line}   # a comment's quote\n")
        with pytest.raises((Exception, SystemExit)):
            check_command(words, parts)


def test_commands_are_found_in_blocks_sentences_and_over_two_lines():
    text = "Do `python -m mmexpert.train a=1`, or\n\n    cd x && python -m mmexpert.train a=2 \\\n        b=3   # it's\n\n```\ntorchrun -m mmexpert.cv\n```\n"
    assert commands_of(text) == [
        ["python", "-m", "mmexpert.train", "a=1"],
        ["python", "-m", "mmexpert.train", "a=2", "b=3"],
        ["torchrun", "-m", "mmexpert.cv"],
    ]
    assert len(COMMANDS) > 80


def test_relative_links_of_the_documentation_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"(?:\]\(|<img src=\")(?!https?:)([^)#\"]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_documented_loss_is_the_contributing_one_and_computes_its_formula(parts):
    shown = files_of((ROOT / "docs/adding_parts.md").read_text(encoding="utf-8"))
    there = files_of((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert there and all(shown[name] == content for name, content in there.items())
    node = OmegaConf.create(shown["conf/loss/focal.yaml"])
    torch.manual_seed(0)
    scores, positives = torch.rand(5, 5, dtype=torch.float64), torch.eye(5, dtype=torch.bool)
    terms = instantiate(node, "loss").from_scores(scores, positives)
    expected = []
    for matrix in (scores / 0.07, scores.T / 0.07):
        loss = sum(math.log(sum(math.exp(value - row[i]) for value in row)) for i, row in enumerate(matrix.tolist())) / 5
        expected.append(loss * (1 - math.exp(-loss)) ** 2)
    assert terms["loss_clip"].item() == pytest.approx(sum(expected) / 2, rel=1e-6)


def test_the_documented_loss_that_is_no_clip_loss_computes_its_formula_from_features_scores_and_row_blocks(parts):
    shown = files_of((ROOT / "docs/adding_parts.md").read_text(encoding="utf-8"))
    loss = instantiate(OmegaConf.create(shown["conf/loss/batch_hard.yaml"]), "loss")
    torch.manual_seed(0)
    query, target = (torch.randn(6, 4, dtype=torch.float64, requires_grad=True) for _ in "qt")
    keys = torch.tensor([0, 1, 2, 2, 3, 4])
    terms, positives = loss(query, target, keys), keys[:, None] == keys
    scores = torch.nn.functional.cosine_similarity(query[:, None], target[None], dim=2)
    expected = 0.0
    for row, own in zip(scores.tolist(), positives.tolist(), strict=True):
        hardest = max(score for score, positive in zip(row, own, strict=True) if not positive)
        weakest = min(score for score, positive in zip(row, own, strict=True) if positive)
        expected += math.log1p(math.exp((hardest - weakest) / 0.07)) / 6
    assert terms["loss_clip"].item() == pytest.approx(expected, rel=1e-6)
    assert loss.from_scores(scores, positives)["loss_clip"].item() == pytest.approx(expected, rel=1e-6)
    assert loss.from_row_block(scores, positives)["loss_clip"].item() == pytest.approx(expected, rel=1e-6)
    terms["loss_clip"].backward()
    assert query.grad.abs().sum() > 0 and target.grad.abs().sum() > 0 and not loss.logit_scale.requires_grad


def test_the_documented_direction_gives_the_floor_that_is_logged(parts):
    shown = files_of((ROOT / "docs/adding_parts.md").read_text(encoding="utf-8"))
    loss = instantiate(OmegaConf.create(shown["conf/loss/focal.yaml"]), "loss")
    positives = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    terms = loss.from_scores(torch.rand(3, 3), positives)
    floor = 2 * math.log(2) / 3  # two rows of two positives, one of one
    assert terms["loss_clip_floor"].item() == pytest.approx(floor * (1 - math.exp(-floor)) ** 2)
    assert terms["loss_clip_excess"].item() == pytest.approx(terms["loss_clip"].item() - terms["loss_clip_floor"].item())


def test_the_documented_data_set_of_another_package_trains_and_is_loaded(parts, tmp_path, monkeypatch):
    from mmexpert import load
    from mmexpert.training import train_run

    monkeypatch.chdir(tmp_path)
    rows = ["file,caption,split"]
    for number, split in enumerate(["train"] * 8 + ["valid"] * 4 + ["test"] * 4):
        Image.new("RGB", (20, 16), (10 * number, 100, 200)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,picture number {number},{split}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    overrides = ["experiment=image_text", "dataset=pairs", f"dataset.root={tmp_path}", "hydra.searchpath=[pkg://theirpkg.conf]"]
    overrides += ["encoder.image.side=32", "trainer.batch_size=4", "trainer.max_steps=2", "trainer.num_workers=0"]
    train_run(check(composed(*overrides)), tmp_path / "run", overrides, ("theirpkg",))
    assert load(tmp_path / "run").encode_text("picture number 3").shape == (1, 128)
    (tmp_path / "3.png").unlink()
    with pytest.raises(DataError, match="pairs.csv, line 5: there is no"):
        instantiate(composed(*overrides).dataset, "dataset", ("theirpkg",))


@pytest.mark.parametrize("name, processes, machines", [("one_gpu", 1, 1), ("multi_gpu", 4, 1), ("two_nodes", 8, 2)])
def test_accelerate_reads_its_launcher_files(name, processes, machines):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / "scripts" / "accelerate" / f"{name}.yaml"))
    assert (config.num_processes, config.num_machines, config.use_cpu) == (processes, machines, False)
    assert str(config.distributed_type).endswith("NO" if processes == 1 else "MULTI_GPU")
