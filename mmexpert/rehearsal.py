"""What can be wrong with a configuration and told before any data are read or simulated: classes, their keys, parts that need no data."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mmexpert.build import stored_towers
from mmexpert.config import check_node, instantiate, locate
from mmexpert.data.sampling import micro_batch
from mmexpert.encoders.base import check_lr_scale
from mmexpert.encoders.image import check_size
from mmexpert.encoders.tokenizer import check_max_length
from mmexpert.engine.progress import Choice
from mmexpert.session import initial_weights
from mmexpert.types import ClassTable, ConfigError

Config = dict[str, Any]
_SOURCES = ("name", "weights", "file")  # keys of parts that read stored weights: those are built once, when their time has come
_CLASSES = ClassTable(("a", "b"), (("a",), ("b",)), (1, 1))


def rehearse(cfg: Config, trust: Sequence[str], processes: int) -> None:
    """Raises ConfigError where the run could not be built from this configuration, as far as can be said without data, RunFolderError
    where a run that it begins with is not there.

    Every class that it names is imported and asked for its arguments; parts of this package without stored weights are built, once for
    nothing: towers on no device, the others are small.
    """
    trainer = cfg["trainer"]
    for key, group, node, given in _nodes(cfg):
        check_node(node, key, group, trust, given)
    if (width := cfg["model"].get("projection_dim")) is not None and width < 1:
        raise ConfigError(f"model.projection_dim={width}: 1 or more")
    micro_batch(trainer["batch_size"], processes, trainer["accumulation"])
    if cfg["init_from"]:
        initial_weights(Path(cfg["init_from"]))
    stored_towers(cfg)
    early = trainer["early_stopping"]
    Choice(trainer["mode"], trainer["save_top_k"], early["monitor"], early["patience"], early["min_delta"])
    for role, node in (cfg.get("encoder") or {}).items():
        if node:
            _check_tower(role, node)
    for group in ("similarity", "loss", "evaluator", "combiner", "tracker", "cv"):
        if (node := cfg.get(group)) and _can_be_built(node) and node.get("dim", 0) is not None:
            instantiate(node, group)
    if (head := cfg["model"].get("head")) and _can_be_built(head) and head.get("dim", 0) is not None:
        instantiate(head, "model", classes=_CLASSES)
    _build_optimizer(cfg, trust)


def _nodes(cfg: Config) -> Iterator[tuple[str, str, Config, set[str]]]:
    """(key, group of trust.PARTS, node, what it is given beside its keys) of every node with a class, but the data set's own."""
    for role, node in (cfg.get("encoder") or {}).items():
        if node:
            yield f"encoder.{role}", "encoder", node, {"tokenizer"} if role == "text" else set()
    model, combiner = dict(cfg["model"]), cfg.get("combiner")
    head = model.pop("head", None)
    yield "model", "model", model, {"encoders", "combiner"} if combiner else {"encoders", "head", "class_prompts"}
    if head:
        yield "model.head", "model", head, {"classes"}
    for group in ("combiner", "similarity", "loss", "evaluator", "tracker", "cv"):
        if cfg.get(group):
            yield group, group, cfg[group], set()
    yield "optimizer", "optimizer", cfg["optimizer"], {"params"}
    yield "scheduler", "scheduler", cfg["scheduler"], _schedule_is_given(cfg["scheduler"])


def _schedule_is_given(node: Config) -> set[str]:
    return {"optimizer", "total_steps", "steps_per_epoch"} if node["_target_"].startswith("mmexpert.") else {"optimizer"}


def _can_be_built(node: Config) -> bool:
    return node["_target_"].startswith("mmexpert.") and not any(isinstance(node.get(key), str) for key in _SOURCES)


def _check_tower(role: str, node: Config) -> None:
    """What can be said of a tower that waits for its weights; one that has none is built."""
    if "lr_scale" in node:
        check_lr_scale(f"encoder.{role}.lr_scale", node["lr_scale"])
    if role == "text" and "max_length" in node:
        check_max_length(node["max_length"])
    if role == "image" and {"side", "in_chans"} <= set(node):
        check_size(node["side"], node["in_chans"])
    if not _can_be_built(node):
        return
    given = {"tokenizer": locate(node["_target_"]).tokenizer_for(["a"], node)} if role == "text" else {}
    with torch.device("meta"):
        instantiate(node, "encoder", **given)


def _build_optimizer(cfg: Config, trust: Sequence[str]) -> None:
    """With one parameter and one step."""
    if cfg["optimizer"].get("eps", 1) <= 0:  # torch takes 0, and a gradient of 0 then gives a NaN
        raise ConfigError(f"optimizer.eps={cfg['optimizer']['eps']}: above 0")
    try:
        optimizer = instantiate(cfg["optimizer"], "optimizer", params=[torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:  # torch's word on a number out of range, or on none
        raise ConfigError(f"optimizer: {error}") from error
    counts = dict.fromkeys(_schedule_is_given(cfg["scheduler"]) - {"optimizer"}, 1)
    if cfg["scheduler"]["_target_"].startswith("mmexpert."):
        instantiate(cfg["scheduler"], "scheduler", trust, optimizer=optimizer, **counts)
