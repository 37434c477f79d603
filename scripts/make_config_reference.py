"""Writes conf/README.md: every key of every config group with its default, the options that have it, and what it means.

python scripts/make_config_reference.py            # after a change below conf/; a test compares the file with what this writes

A meaning is the comment on the key's line in the YAML, or the base's where an option changes a value only; a key without one is an
error. Run-level keys and trainer's have their types from mmexpert/schema.py besides.
"""

import json
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import get_type_hints

import yaml

from mmexpert.command_line import groups
from mmexpert.config import CONF_DIR
from mmexpert.schema import EarlyStoppingKeys, RunKeys, TrainerKeys

FILE = "README.md"
HEAD = """# Configuration reference
Made by `scripts/make_config_reference.py` from the YAML files here and `mmexpert/schema.py`: change those, not this file. A key is
written on the command line as `key=value`, an option as `group=option`; `python -m mmexpert.train --cfg job` prints the values of a run.
`???` must be given; `${...}` takes another key's value; `null` is nothing. `trust=[theirpkg]` stands on the command line alone.
"""
SKIPPED = ("defaults", "hydra", "_target_", "_partial_")


@dataclass(frozen=True)
class Key:
    """A key of one YAML file. default: as written there. meaning: the comment on its line, or empty."""

    name: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Leaf:
    """A YAML file. prefix: what stands before its keys on the command line. about: what the option is. part: name of its class.

    bases: (option, where its keys go: empty = among this file's, else the key above them). chosen: its `override`s.
    """

    prefix: str
    about: str
    part: str
    bases: tuple[tuple[str, str], ...]
    chosen: tuple[str, ...]
    keys: dict[str, Key]


def read_leaf(path: Path, group: str) -> Leaf:
    """One file, without its bases."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    head = [line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines)]
    package = next((line.split()[1] for line in head if line.startswith("@package")), group.replace("/", "."))
    node = yaml.compose(text)
    top = {key.value: (key, value) for key, value in node.value} if node is not None else {}
    keys = {key.name: key for name, pair in top.items() if name not in SKIPPED for key in _keys(name, *pair, lines)}
    items = _items(top["defaults"][1]) if "defaults" in top else []
    told = [
        _comment(*top["_target_"], lines) if "_target_" in top else "",
        " ".join(line for line in head if not line.startswith("@package")),
        _comment(*top["defaults"], lines) if "defaults" in top else "",
        *(key.meaning for key in keys.values()),
    ]
    return Leaf(
        prefix="" if package == "_global_" else f"{package}.",
        about=next((one for one in told if one), ""),
        part=top["_target_"][1].value.rsplit(".", 1)[1] if "_target_" in top else "",
        bases=tuple(_base(item) for item in items if "=" not in item and item != "_self_"),
        chosen=tuple(item.removeprefix("override ") for item in items if "=" in item),
        keys=keys,
    )


def whole_leaf(folder: Path, group: str, option: str) -> Leaf:
    """An option with what it takes over from its bases: a value of its own keeps the base's meaning where it has no comment."""
    own = read_leaf(folder / group / f"{option}.yaml", group)
    keys: dict[str, Key] = {}
    for base, place in own.bases:
        leaf = whole_leaf(folder, group, base)
        if place:
            keys[place] = Key(place, leaf.part, leaf.about)
        below = [replace(key, name=f"{place}.{key.name}" if place else key.name) for key in leaf.keys.values()]
        keys |= {key.name: key for key in below}
    for name, key in own.keys.items():
        known = keys.get(name)
        keys[name] = replace(key, meaning=key.meaning or (known.meaning if known else ""))
    return replace(own, keys=keys)


def reference(folder: Path) -> str:
    """The text of conf/README.md. Raises SystemExit naming each key that has no meaning, and each of the schema that no file has."""
    parts, untold = [HEAD], []
    run = read_leaf(folder / "train.yaml", "_global_").keys
    trainer = whole_leaf(folder, "trainer", "default").keys
    trainer = {field.name: trainer[field.name] for field in fields(TrainerKeys) if field.name in trainer} | trainer  # the usual ones first
    untold += _against_schema(run, trainer)
    parts.append("## Run\nKeys of `train.yaml`.\n\n" + _typed(run, "", RunKeys))
    parts.append(
        "## trainer\nKeys of `trainer/default.yaml` and of `trainer/base`, which it is made of.\n\n"
        + _typed(trainer, "trainer.", TrainerKeys)
    )
    for group, options in groups().items():
        if group in ("experiment", "trainer"):
            continue
        leaves = {option: whole_leaf(folder, group, option) for option in options}
        untold += [
            f"{group}/{option}.yaml: {name}" for option, leaf in leaves.items() for name, key in leaf.keys.items() if not key.meaning
        ]
        parts.append(f"## {group}\n" + _options(leaves) + _rows_of(leaves))
    check = read_leaf(folder / "check_data.yaml", "_global_").keys
    for file, keys in (("train.yaml", run), ("trainer/default.yaml", trainer), ("check_data.yaml", check)):
        untold += [f"{file}: {key.name}" for key in keys.values() if not key.meaning]
    rows = [(_code(key.name), _code(key.default), _text(key.meaning)) for key in check.values()]
    parts.append("## mmexpert.check_data\nBeside the keys of a training.\n\n" + _table(("key", "default", "meaning"), rows))
    parts.append("## experiment\n" + "\n".join(_preset(folder, preset) for preset in groups()["experiment"]))
    if untold:
        raise SystemExit("write a comment (meaning, unit or range) on the line of each of these keys:\n  " + "\n  ".join(untold))
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _keys(name: str, key: yaml.Node, value: yaml.Node, lines: list[str]) -> Iterator[Key]:
    """The key, and below a mapping of several lines its keys too; a mapping whose entries have no comments is one value (class texts)."""
    meaning = _comment(key, value, lines)
    if not isinstance(value, yaml.MappingNode) or value.flow_style:
        yield Key(name, _source(value, lines), meaning)
        return
    below = [
        entry for inner, node in value.value if inner.value not in SKIPPED for entry in _keys(f"{name}.{inner.value}", inner, node, lines)
    ]
    target = next((node for inner, node in value.value if inner.value == "_target_"), None)
    meaning = meaning or (_comment(target, target, lines) if target is not None else "")
    if meaning and not any(entry.meaning for entry in below):
        yield Key(name, f"{len(below)} entries", meaning)
        return
    if target is not None:
        yield Key(name, target.value.rsplit(".", 1)[1], meaning)
    yield from below


def _comment(key: yaml.Node, value: yaml.Node, lines: list[str]) -> str:
    """What stands behind # on the key's line; behind the value where that ends on the line."""
    line = key.start_mark.line
    after = value.end_mark.column if value.end_mark.line == line else key.end_mark.column + 1
    rest = lines[line][after:].strip()
    return rest.removeprefix("#").strip() if rest.startswith("#") else ""


def _source(value: yaml.Node, lines: list[str]) -> str:
    start, end = value.start_mark, value.end_mark
    return lines[start.line][start.column : end.column] if start.line == end.line else "..."


def _base(item: str) -> tuple[str, str]:
    """`base/radar@radar` and the like as Leaf.bases has them; `_here_` is where the file's own keys go."""
    option, _, place = item.partition("@")
    return option, place.replace("_here_", "")


def _items(node: yaml.Node) -> list[str]:
    """A defaults list as strings: `base/clips@_here_`, or `override /loss=clip`."""
    return [
        item.value if isinstance(item, yaml.ScalarNode) else " ".join(f"{key.value}={value.value}" for key, value in item.value)
        for item in node.value
    ]


def _against_schema(run: dict[str, Key], trainer: dict[str, Key]) -> list[str]:
    """Keys that the schema has and no file, or the reverse."""
    nodes = {group.split("/")[0] for group in groups()}
    wanted = {field.name for field in fields(RunKeys)} - nodes
    below = {field.name for field in fields(TrainerKeys)}
    return [f"train.yaml: {name}, of the schema or of the file alone" for name in sorted(wanted ^ set(run))] + [
        f"trainer/default.yaml: {name}, of the schema or of the file alone" for name in sorted(below ^ set(trainer))
    ]


def _typed(keys: dict[str, Key], prefix: str, schema: type) -> str:
    hints = get_type_hints(schema)
    names = {name: _type_name(kind) for name, kind in hints.items()}
    rows = [(_code(prefix + key.name), _text(names.get(key.name, "")), _code(key.default), _text(key.meaning)) for key in keys.values()]
    return _table(("key", "type", "default", "meaning"), rows)


def _type_name(kind: object) -> str:
    if is_dataclass(kind):
        hints = get_type_hints(EarlyStoppingKeys)
        return "; ".join(f"{name}: {_type_name(inner)}" for name, inner in hints.items())
    name = kind.__name__ if isinstance(kind, type) else str(kind)
    return {"Any": "any", "typing.Any": "any"}.get(name, name)


def _options(leaves: dict[str, Leaf]) -> str:
    return _table(("option", "what it is"), [(_code(option), _text(leaf.about)) for option, leaf in leaves.items()])


def _rows_of(leaves: dict[str, Leaf]) -> str:
    """One row for each key, default and meaning that the options of a group have, in the order of their first mention."""
    found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for option, leaf in leaves.items():
        for key in leaf.keys.values():
            default = "the option's name" if key.default == option else _code(key.default)
            found[leaf.prefix + key.name, default, key.meaning].append(option)
    order = {name: place for place, name in reversed(list(enumerate(name for name, _, _ in found)))}
    rows = [
        (_code(name), default, "all" if len(options) == len(leaves) > 1 else ", ".join(options), _text(meaning))
        for (name, default, meaning), options in sorted(found.items(), key=lambda item: order[item[0][0]])
    ]
    return "\n" + _table(("key", "default", "options", "meaning"), rows) if rows else ""


def _preset(folder: Path, name: str) -> str:
    """A preset as the overrides that it stands for."""
    leaf = read_leaf(folder / "experiment" / f"{name}.yaml", "experiment")
    chosen = _wrapped(item.replace("override /", "") for item in leaf.chosen)
    given = [pair for key in leaf.keys.values() if key.name != "name" for pair in _pairs(key.name, yaml.safe_load(key.default))]
    values = _wrapped(given)
    about = "\n".join(textwrap.wrap(leaf.about, 140, break_long_words=False))
    return f"### experiment={name}\n{about}\n\n{chosen}\n{values}\n"


def _wrapped(words: Iterable[str]) -> str:
    return "\n".join(
        textwrap.wrap(" ".join(words), 136, initial_indent="    ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    )


def _pairs(name: str, value: object) -> Iterator[str]:
    """An entry of a preset as key=value, without blanks."""
    if isinstance(value, dict):
        for inner, below in value.items():
            yield from _pairs(f"{name}.{inner}", below)
        return
    yield f"{name}={json.dumps(value, separators=(',', ':')).replace(chr(34), '')}"


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _text(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _table(head: tuple[str, ...], rows: object) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


if __name__ == "__main__":
    text = reference(Path(CONF_DIR))
    (Path(CONF_DIR) / FILE).write_text(text, encoding="utf-8")
    sys.stdout.write(f"wrote {Path(CONF_DIR) / FILE}\n")
