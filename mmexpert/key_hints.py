"""What a misspelt key was meant to be: the names in conf/ as a command line combines them, read as YAML: nothing could be composed."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from mmexpert.config import CONF_DIR, suggest

_WHOLE = ("experiment", "sweep")  # groups whose options change keys of others and have none of their own
_LIKE = 0.75  # of whole dotted keys, most of whose letters are always right
_SHOWN = 4  # keys of one ending


def groups() -> dict[str, list[str]]:
    """Config groups and their options, read from the folder names; `base` folders hold what options share, and are none."""
    found: dict[str, list[str]] = {}
    for path in sorted(Path(CONF_DIR).rglob("*.yaml")):
        group = path.parent.relative_to(CONF_DIR).as_posix()
        if group not in (".", "hydra") and path.parent.name != "base":
            found.setdefault(group, []).append(path.stem)
    return found


def chosen_options(arguments: Sequence[str]) -> dict[str, list[str]]:
    """The options of every group under a command line: its own, else those of its preset, else the defaults; several in a sweep."""
    given = {key.lstrip("+~"): value for key, found, value in (argument.partition("=") for argument in arguments) if found}
    chosen = _defaults(Path(CONF_DIR) / "train.yaml")
    for preset in given.get("experiment", "").split(","):
        chosen |= _defaults(Path(CONF_DIR) / "experiment" / f"{preset}.yaml")
    known = groups()
    chosen |= {group: value for group, value in given.items() if group in known}
    return {group: str(value).split(",") for group, value in chosen.items() if value not in (None, "null")}


def presets_without(group: str) -> list[str]:
    """The presets that choose no option of a group (`override /GROUP: null`)."""
    return [name for name in groups()["experiment"] if _defaults(_file("experiment", name)).get(group, "") is None]


def options_of(group: str, target: str) -> list[str]:
    """The options of a group that build a class."""
    return [option for option in groups()[group] if _read(_file(group, option)).get("_target_") == target]


def key_hint(key: str, arguments: Sequence[str]) -> str:
    """What follows `KEY: there is no such key`: the key that was meant, the options that have it, or the keys beside it."""
    here, last = _composition(arguments), key.rpartition(".")[2]
    tops = sorted({name.partition(".")[0] for name in here} | {group.partition("/")[0] for group in groups()})
    if key.partition(".")[0] in tops and "." in key:
        return _hint_below(key, here, arguments)
    if whole := _ending(key, here):
        return _meant(whole)
    if "." in key:
        near = get_close_matches(key, here, n=1, cutoff=_LIKE)
        return _meant(near) if near else suggest(key.partition(".")[0], tops)
    if owners := [(name, option) for name, options in _everything().items() if name.endswith(f".{key}") for option in options]:
        return f": there is {owners[0][0]!r} with {', '.join(option for name, option in owners if name == owners[0][0])}"
    near = get_close_matches(last, sorted({*tops, *(name.rpartition(".")[2] for name in here)}), n=1, cutoff=0.6)
    return _meant(_ending(near[0], here)) if near and near[0] not in tops else suggest(key, tops)


def _hint_below(key: str, here: Sequence[str], arguments: Sequence[str]) -> str:
    """The hint for a key of a group that there is."""
    parent, _, last = key.rpartition(".")
    if owners := _everything().get(key):
        return f" in the option that is chosen; there is one in {', '.join(owners)}"
    beside, elsewhere = _below(parent, here), _below(parent, _everything())
    if get_close_matches(last, beside, n=1, cutoff=0.6):
        return suggest(last, beside)
    if near := get_close_matches(last, elsewhere, n=1, cutoff=0.6):
        return f" in the option that is chosen; there is {near[0]!r} in {', '.join(_everything()[f'{parent}.{near[0]}'])}"
    near = [] if beside else get_close_matches(key, here, n=1, cutoff=_LIKE)  # a parent misspelt
    group = [name for name in here if name.startswith(f"{key.partition('.')[0]}.")]
    meant = near or _ending(last, group) or _ending(last, here)
    return _meant(meant) if meant else suggest(last, beside or elsewhere)


def _meant(keys: Sequence[str]) -> str:
    return f": did you mean {' or '.join(repr(key) for key in keys[:_SHOWN])}?"


def _ending(word: str, keys: Sequence[str]) -> list[str]:
    """The keys that end with a word (or with several, joined by dots), those of the fewest parts first."""
    return sorted((key for key in keys if key.endswith(f".{word}")), key=lambda key: (key.count("."), key))


def _below(parent: str, keys: Sequence[str]) -> list[str]:
    return sorted({key[len(parent) + 1 :].partition(".")[0] for key in keys if key.startswith(f"{parent}.")})


def _composition(arguments: Sequence[str]) -> list[str]:
    """Dotted keys of the configuration that a command line would give."""
    found = set(_leaves(Path(CONF_DIR) / "train.yaml"))
    for group, options in chosen_options(arguments).items():
        if group not in _WHOLE:
            found |= {f"{group.replace('/', '.')}.{name}" for option in options for name in _leaves(_file(group, option))}
    return sorted(found)


@cache
def _everything() -> dict[str, list[str]]:
    """Dotted keys of all options -> the options that have them, as `group=option`."""
    found: dict[str, list[str]] = {}
    for group, options in groups().items():
        for option in options if group not in _WHOLE else ():
            for name in _leaves(_file(group, option)):
                found.setdefault(f"{group.replace('/', '.')}.{name}", []).append(f"{group}={option}")
    return found


def _file(group: str, option: str) -> Path:
    return Path(CONF_DIR) / group / f"{option}.yaml"


@cache
def _leaves(path: Path) -> tuple[str, ...]:
    """Dotted keys of a YAML, nodes too, with those of the files that its defaults name beside it; none of a file that is not there."""
    node = _read(path)
    found = dict.fromkeys(_dotted(node, ""))
    for entry in node.get("defaults", []):
        if isinstance(entry, str) and entry != "_self_":
            name, _, package = entry.partition("@")
            prefix = "" if package in ("", "_here_") else f"{package}."
            found |= {prefix + key: None for key in _leaves(path.parent / f"{name}.yaml")}
    return tuple(found)


def _dotted(node: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, value in node.items():
        if str(key).startswith("_") or not prefix and key in ("defaults", "hydra"):
            continue
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")


def _defaults(path: Path) -> dict[str, Any]:
    """Options by group of a YAML's defaults: `group: option` and `override /group: option`."""
    entries = [entry for entry in _read(path).get("defaults", []) if isinstance(entry, dict)]
    return {str(key).removeprefix("override ").lstrip("/"): value for entry in entries for key, value in entry.items()}


@cache
def _read(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    node = OmegaConf.to_container(OmegaConf.load(path), resolve=False) if path.is_file() else {}
    return node if isinstance(node, dict) else {}
