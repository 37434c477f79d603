"""Classes by name and order, and their sentences: read from JSON or YAML, multiplied by templates, compared with the classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmexpert.data.findings import DataFault, FaultList
from mmexpert.data.parsed_json import parsed_json
from mmexpert.types import ConfigError

CLASS_TEXTS = "class_texts.json"
_SHOWN = 10


def class_names(labels: Sequence[str], order: Sequence[Any] | None) -> tuple[str, ...]:
    """The classes: distinct labels by code point, or in the given order. Raises DataFault for fewer than two.

    Order never depends on the file system, since it decides which logit is which class.
    """
    found = sorted(set(labels))
    names = found if order is None else [str(name) for name in order]
    if len(set(names)) < len(names):
        raise ConfigError(f"dataset.class_order={names}: a class is there twice")
    if len(names) < 2:
        message = f"{len(names)} class ({_listed(names)}); classification needs two or more: is dataset.root the folder above the classes?"
        raise DataFault(message, "unknown_class")
    return tuple(names)


def read_class_texts(given: Any, root: Path) -> tuple[dict[str, tuple[str, ...]] | None, str]:
    """(texts by class, where they stand). given: a mapping, a JSON file (from here, else from root), or `auto`: root/class_texts.json.

    None where `auto` finds no file. Raises DataFault: no file, no JSON, not class -> text or list of texts, an empty text.
    """
    if isinstance(given, Mapping):
        return _lists(given, "dataset.class_texts"), "dataset.class_texts"
    if given == "auto" and not (root / CLASS_TEXTS).is_file():
        return None, "the names of the classes"
    name = CLASS_TEXTS if given == "auto" else str(given)
    candidates = [root / name] if given == "auto" else [Path(name), root / name]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise DataFault(f"dataset.class_texts={given}: there is no such file, here or in {root}", "missing_file", name)
    try:
        return _lists(parsed_json(path.read_text(encoding="utf-8-sig"), _no_twins), str(path)), str(path)
    except ValueError as error:  # syntax (with line and column), encoding, a class twice
        raise DataFault(f"{path}: {error}; write a JSON object class -> text or list of texts", "json_syntax", str(path)) from error


def _no_twins(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"a class is there twice in {', '.join(names)}")
    return dict(pairs)


def _lists(texts: Any, where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(texts, Mapping):
        raise DataFault(f"{where}: {type(texts).__name__}, expected class -> text or list of texts", "wrong_field", where)
    found = {}
    for name, value in texts.items():
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, Sequence) or not all(isinstance(text, str) for text in value):
            raise DataFault(
                f"{where}: the text of {name!r} is {value!r}, expected a text or a list of texts", "wrong_field", where, str(name)
            )
        if not value or not all(text.strip() for text in value):
            raise DataFault(f"{where}: an empty text of {name!r}; give the class one or more sentences", "empty_caption", where, str(name))
        found[str(name)] = tuple(value)
    return found


def class_prompts(names: Sequence[str], given: Any, templates: Any, root: Path, faults: FaultList) -> tuple[tuple[str, ...], ...]:
    """All prompts of each class, in the order of names: each text in each template.

    Raises DataFault where texts and classes differ (both differences are listed), ConfigError for a template without `{}`.
    """
    templates = [templates] if isinstance(templates, str) else list(templates)
    if not templates or not all(isinstance(template, str) and template.count("{}") == 1 for template in templates):
        raise ConfigError(f"dataset.templates={templates}: a list of sentences with one {{}} each, such as 'a radiograph of {{}}'")
    texts, where = read_class_texts(given, root)
    if texts is None:
        texts = {name: (name.replace("_", " "),) for name in names}
        faults.warn(
            "class_without_text", f"{root}: no {CLASS_TEXTS}, so the class names serve as texts; set dataset.class_texts to say more"
        )
    silent = [name for name in names if name not in texts]
    unused = [name for name in texts if name not in names]
    if silent or unused:
        parts = [f"{text} {_listed(rows)}" for text, rows in (("no text for the class", silent), ("no class for the text", unused)) if rows]
        message = f"{where}: {'; '.join(parts)}. The classes are {_listed(names)}: write one entry for each"
        raise DataFault(message, "class_without_text" if silent else "unknown_class", where)
    return tuple(tuple(template.replace("{}", text) for text in texts[name] for template in templates) for name in names)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
