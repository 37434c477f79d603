"""conf/README.md tells every key that a configuration can hold, and is what its script writes."""

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import OmegaConf

from mmexpert.command_line import composed, groups
from mmexpert.config import CONF_DIR

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "make_config_reference.py"
OPTIONS = [(group, option) for group, options in groups().items() for option in options if group not in ("experiment", "trainer", "sweep")]


def yaml_of(group: str, option: str) -> str:
    return (Path(CONF_DIR) / group / f"{option}.yaml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_config_reference", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def keys_below(node: Any, name: str) -> Iterator[str]:
    """Dotted names of the plain values of a composed node."""
    if not isinstance(node, dict):
        yield name
    for key, value in node.items() if isinstance(node, dict) else ():
        if key not in ("_target_", "_partial_"):
            yield from keys_below(value, f"{name}.{key}")


def test_the_reference_is_what_the_script_writes_from_the_yaml_files(script):
    written = (Path(CONF_DIR) / script.FILE).read_text(encoding="utf-8")
    assert written == script.reference(Path(CONF_DIR)), "run python scripts/make_config_reference.py"


def test_keys_without_a_comment_are_named_with_their_files(script, tmp_path):
    conf = tmp_path / "conf"
    shutil.copytree(CONF_DIR, conf)
    (conf / "loss/clip.yaml").write_text((conf / "loss/clip.yaml").read_text().replace("# false: the scale stays", ""))
    (conf / "trainer/default.yaml").write_text((conf / "trainer/default.yaml").read_text() + "speed: 3\n")
    with pytest.raises(SystemExit) as stopped:
        script.reference(conf)
    told = str(stopped.value)
    assert "loss/clip.yaml: learn_scale" in told and "loss/clip_one_way.yaml: learn_scale" in told  # one takes the other's keys over
    assert "trainer/default.yaml: speed, of the schema or of the file alone" in told
    assert "siglip" not in told


def test_a_comment_is_told_from_a_value_that_holds_its_sign(script, tmp_path):
    text = '_target_: a.B   # what it is\nname: "x # y"   # a name\nlist: [1, 2]\nouter:   # above\n  inner: 3   # below\n'
    (tmp_path / "part.yaml").write_text(text)
    leaf = script.read_leaf(tmp_path / "part.yaml", "loss")
    assert leaf.about == "what it is" and leaf.prefix == "loss."
    told = {name: (key.default, key.meaning) for name, key in leaf.keys.items()}
    assert told == {"name": ('"x # y"', "a name"), "list": ("[1, 2]", ""), "outer.inner": ("3", "below")}


@pytest.mark.parametrize("group, option", [(group, option) for group, option in OPTIONS if "defaults:" in yaml_of(group, option)])
def test_every_key_that_hydra_composes_for_an_option_is_in_the_reference(script, group, option):
    """The script reads comments, so it reads YAML by itself: Hydra's own composition is the judge."""
    leaf = script.whole_leaf(Path(CONF_DIR), group, option)
    known = {leaf.prefix + name for name in leaf.keys}
    parents = {other.replace("/", ".") for other in groups() if other.startswith(f"{group}/")}  # nodes that other groups fill
    name = group.replace("/", ".")
    node = OmegaConf.select(composed(f"{group}={option}"), name)
    node = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node
    for found in keys_below(node, name):
        if not any(found == parent or found.startswith(f"{parent}.") for parent in parents):
            assert any(found == key or found.startswith(f"{key}.") for key in known), found


@pytest.mark.parametrize("group, option", [(group, option) for group, option in OPTIONS if "defaults:" not in yaml_of(group, option)])
def test_every_key_that_a_yaml_file_holds_is_in_the_reference(script, group, option):
    known = script.read_leaf(Path(CONF_DIR) / group / f"{option}.yaml", group).keys
    for name, node in OmegaConf.to_container(OmegaConf.create(yaml_of(group, option)), resolve=False).items():
        for found in keys_below(node, name) if name not in script.SKIPPED else ():
            assert any(found == key or found.startswith(f"{key}.") for key in known), found
