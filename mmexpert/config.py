"""Configuration: where the YAML lies, the check against the schema, and the one guarded instantiate.

Imports Hydra and the standard library only: `--help` must not wait for torch.
"""

import difflib
import importlib
import inspect
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmexpert.schema import PARTS_OF_DATA, RANGES, RunKeys, TrainerKeys
from mmexpert.trust import PARTS, check_target
from mmexpert.types import ConfigError, MmexpertError

_BESIDE = Path(__file__).resolve().parent / "conf"
CONF_DIR = str(_BESIDE if _BESIDE.is_dir() else _BESIDE.parents[1] / "conf")  # wheel, else checkout

NOT_HASHED = [
    "resume",
    "trust",
    "dry_run",
    "name",
    "experiment",
    "sweep",
    "tracker",
    "cv.fold",
    "cv.workers",
    "cv.lock",
    "cv.refit",
    "expect_processes",
    "allow_world_change",
    "data_check",
    "cache_dir",
    "trainer.device",
    "trainer.num_workers",
    "trainer.prefetch_factor",
    "trainer.pin_memory",
    "trainer.loader_timeout_s",
    "trainer.group_timeout_s",
    "trainer.poll_every",
    "trainer.log_every",
    "trainer.save_every_minutes",
    "trainer.save_every_steps",
    "trainer.keep_last",
    "trainer.save_top_k",
    "trainer.export_pth",
]
"""Keys that can not change a number: neither the config hash nor the run folder's name holds them."""

CHOICES = {
    "resume": ("auto", "must", "never"),
    "data_check": ("quick", "deep", "off"),
    "trainer.device": ("auto", "cpu", "cuda"),
    "trainer.nonfinite": ("stop", "skip"),
    "trainer.accumulate": ("gradients", "features"),
    "trainer.compile": ("none", "blocks"),
    "trainer.loss_tile": ("auto", "dense", "store", "recompute"),
    "trainer.loss_exchange": ("auto", "rows", "ring"),
}
_NUMBERS = (
    *("optimizer.lr", "optimizer.weight_decay", "optimizer.eps", "optimizer.momentum"),
    *("scheduler.warmup", "scheduler.min_lr", "loss.temperature"),
)
_KINDS = {"int": (int, "a whole number"), "float": ((int, float), "a number"), "bool": (bool, "true or false")}


def check(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain containers, interpolations resolved, after all checks that need no data and no torch.

    `+trainer.foo=1` slips past Hydra's struct flag; the merge into the schema finds it. Raises ConfigError.
    """
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
        OmegaConf.merge(OmegaConf.structured(RunKeys), plain)
    except OmegaConfBaseException as error:
        raise ConfigError(_without_radar(cfg) or _explain(error)) from error
    if missing := next(_missing(plain, ""), None):
        raise ConfigError(f"{missing} has no value yet: write {missing}=... on the command line")
    unknown = [key for key in plain if key not in {f.name for f in fields(RunKeys)}]
    if unknown:
        raise ConfigError(f"unknown key {unknown[0]!r}{suggest(unknown[0], [f.name for f in fields(RunKeys)])}")
    for key, allowed in CHOICES.items():
        value = OmegaConf.select(cfg, key)
        if value not in allowed:
            raise ConfigError(f"{key}={value}: choose one of {', '.join(allowed)}")
    for key, bounds in RANGES.items():
        _check_range(key, OmegaConf.select(cfg, key), *bounds)
    parts = plain["final_parts"]
    if not isinstance(parts, list) or any(part not in PARTS_OF_DATA for part in parts):
        raise ConfigError(f"final_parts={parts}: a list out of {', '.join(PARTS_OF_DATA)}, such as final_parts=[valid,test]")
    for key in _NUMBERS:
        if isinstance(value := OmegaConf.select(cfg, key), str):
            raise ConfigError(f"{key}={value!r}: a number is needed")
    return plain


def _check_range(key: str, value: Any, least: float, inclusive: bool, nullable: bool) -> None:
    if value is None and nullable:
        return
    if not isinstance(value, (int, float)) or not (
        least <= value < math.inf if inclusive else least < value < math.inf
    ):  # a NaN is in no range
        allowed = f"{least} or more" if inclusive else f"above {least}"
        raise ConfigError(f"{key}={'null' if value is None else value}: {allowed}{', or null' if nullable else ''}")


def _missing(node: Any, path: str) -> Iterator[str]:
    """Full keys whose value is `???`."""
    if node == "???":
        yield path
    for key, value in node.items() if isinstance(node, dict) else ():
        yield from _missing(value, f"{path}.{key}" if path else str(key))


def _without_radar(cfg: DictConfig) -> str:
    """What to choose where a tower for radar meets a data set without; empty where that is not what is wrong."""
    if not OmegaConf.select(cfg, "encoder.radar._target_") or "views" in cfg.dataset:
        return ""
    from mmexpert.key_hints import options_of, presets_without

    target, presets = cfg.dataset._target_, presets_without("encoder/radar")
    option = (options_of("dataset", target) or [target])[0]
    return (
        f"dataset={option} has no radar, which the encoder/radar of this command reads: choose a preset without one, "
        f"experiment={' or '.join(presets)}"
    )


def _explain(error: OmegaConfBaseException) -> str:
    key = error.full_key or ""
    message = str(error).splitlines()[0]
    if "not in" in message and "." in key:
        known = {f.name for f in fields(TrainerKeys)} if key.startswith("trainer.") else set()
        return f"{key}: there is no such key{suggest(key.rsplit('.', 1)[1], sorted(known))}"
    return f"{key or 'configuration'}: {message}"


def suggest(word: str, known: Sequence[str]) -> str:
    """': did you mean X? There are a, b, c' for a misspelt word, or the list alone; nothing where nothing is known."""
    if not known:
        return ""
    plain = {name.lower(): name for name in known}
    near = [plain[name] for name in difflib.get_close_matches(word.lower(), plain, n=1, cutoff=0.6)]
    hint = f": did you mean {near[0]!r}?" if near else "."
    return f"{hint} There are {', '.join(sorted(known))}"


def instantiate(node: Any, group: str, trust: Sequence[str] = (), **given: Any) -> Any:
    """The object that a config node names by `_target_`, built with the node's keys and what is given beside them.

    group names the entry of PARTS that says which packages may be named; trust adds packages (from the command line only). Every
    `_target_` at any depth is checked before anything is built. Raises ConfigError naming the key, the class or the argument.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate as hydra_instantiate

    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if not isinstance(plain, dict) or "_target_" not in plain:
        raise ConfigError(f"{group}: the node has no _target_; it holds {plain!r}")
    check_node(plain, group, group, trust, given)
    # partial: Hydra would copy what is given (modules, parameter groups) into the config
    try:
        return hydra_instantiate(plain | {"_partial_": True}, _convert_="all")(**given)
    except InstantiationException as error:
        if isinstance(error.__cause__, MmexpertError):  # of a nested part, which Hydra builds: its own words and exit code
            raise error.__cause__ from None
        raise


def check_node(plain: dict[str, Any], key: str, group: str, trust: Sequence[str], given: Iterable[str]) -> None:
    """Checks a node, and the nodes in it: that its classes may be named and are there, and that they take its keys.

    key: where it stands in the configuration. given: arguments that come beside the node's keys. Raises ConfigError.
    """
    nodes = list(targets(plain, key))
    for path, found in nodes:  # all names before any class is looked at
        check_target(f"{path}._target_", found["_target_"], PARTS[group], trust)
    for path, found in nodes:
        _check_arguments(path, found, set(given) if found is plain else set())


def targets(plain: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(full key, node) of every dict with a `_target_`, at any depth, in lists and under `_args_` too."""
    if isinstance(plain, dict):
        if "_target_" in plain:
            yield path, plain
        for key, value in plain.items():
            yield from targets(value, f"{path}.{key}")
    elif isinstance(plain, list):
        for position, value in enumerate(plain):
            yield from targets(value, f"{path}[{position}]")


def locate(target: str) -> type:
    """The class of an allowed dotted name."""
    module, name = target.rsplit(".", 1)
    return vars(importlib.import_module(module))[name]


def _check_arguments(path: str, node: dict[str, Any], given: set[str]) -> None:
    if "_args_" in node:
        return
    accepted = inspect.signature(locate(node["_target_"])).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values()):
        return
    for key in sorted((keys := {key for key in node if not key.startswith("_")}) - set(accepted)):
        raise ConfigError(f"{path}.{key}: {node['_target_']} takes no such key{suggest(key, sorted(set(accepted) - given))}")
    if alien := sorted(given - set(accepted)):
        raise ConfigError(f"{path}: {node['_target_']} takes no {alien[0]}: choose another {path.split('.')[0]}=, or {alien[0]}=null")
    for key in sorted(keys) if node["_target_"].startswith("mmexpert.") else ():
        _check_number(f"{path}.{key}", node[key], accepted[key].annotation)
    needed = {name for name, p in accepted.items() if p.default is p.empty and p.kind is not p.VAR_POSITIONAL}
    for key in sorted(needed - keys - given):
        raise ConfigError(f"{path}: {node['_target_']} needs the key {key!r}")


def _check_number(key: str, value: Any, annotation: Any) -> None:
    """Raises ConfigError where an argument that is annotated as a number, or one or None, is given something else."""
    kind = str(getattr(annotation, "__name__", annotation)).removesuffix(" | None")
    if value is None or kind not in _KINDS:
        return
    classes, wanted = _KINDS[kind]
    if not isinstance(value, classes) or (isinstance(value, bool) and kind != "bool"):
        raise ConfigError(f"{key}={value!r}: {wanted} is needed")
