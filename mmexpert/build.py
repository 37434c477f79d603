"""Parts from a config: the one place that knows which node becomes which argument of which other part."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmexpert.config import instantiate, locate
from mmexpert.data.collate import Collate
from mmexpert.data.loaders import Loaders, PlanSettings, WorkerSettings
from mmexpert.data.preparation import picture_node
from mmexpert.data.records import RecordDataset
from mmexpert.encoders.clip_source import one_load
from mmexpert.encoders.tokenizer import TextTokenizer
from mmexpert.engine.chance import contrastive_rows
from mmexpert.engine.feature_cache import CacheSettings, FeatureCache
from mmexpert.engine.objective import Objective
from mmexpert.engine.optim import parameter_groups, warn_of_few_steps, warn_of_rates
from mmexpert.models.heads import ClassPrompts
from mmexpert.towers import StoredTowers
from mmexpert.types import ClassTable, ConfigError, TokenCorpus

Config = dict[str, Any]


def build_dataset(cfg: Config, trust: Sequence[str] = ()) -> RecordDataset:
    """The data set; all its records are read and checked here."""
    node = dict(cfg["dataset"])
    kind = node.pop("fingerprint", "size")  # of the run, not of a data set's own reading
    if kind not in ("size", "content"):
        raise ConfigError(f"dataset.fingerprint={kind}: choose size or content")
    if isinstance(seed := node.get("seed"), int) and seed < 0:  # NumPy takes none below, and says so at the first sample
        raise ConfigError(f"dataset.seed={seed}: a whole number, 0 or more")
    dataset = instantiate(node, "dataset", trust)
    if kind == "content":
        dataset.content_roots = tuple(str(node[key]) for key in ("root", "image_root") if node.get(key))
    return dataset


def stored_preparation(cfg: Config, dataset: RecordDataset) -> dict[str, Any]:
    """Nodes by role of what turns a user's inputs into a tower's, for the saved model; after dataset.fit()."""
    transform = cfg["dataset"].get("transform")
    node = dataset.preparation() or (
        picture_node(transform, cfg["dataset"].get("exif", getattr(dataset, "exif", True))) if transform else None
    )
    return {"image": node} if node else {}


def build_tokenizer(cfg: Config, texts: list[str]) -> TextTokenizer | None:
    """The text tower's tokenizer: stored with a pretrained one or the run that gives the towers, built from texts (the training
    part's) for one from scratch."""
    node = (cfg.get("encoder") or {}).get("text")
    if not node:
        return None
    if towers := stored_towers(cfg):
        return towers.tokenizer()
    return locate(node["_target_"]).tokenizer_for(texts, node)


def stored_towers(cfg: Config) -> StoredTowers | None:
    """The run that model.towers names, or None."""
    run = cfg["model"].get("towers")
    return StoredTowers.of(run) if run else None


def training_classes(dataset: RecordDataset, train: Sequence[int]) -> ClassTable | None:
    """The class table with the counts of a fold's training part."""
    if dataset.classes is None:
        return None
    labels = [dataset.records[i].label for i in train]
    return replace(dataset.classes, counts=tuple(labels.count(k) for k in range(len(dataset.classes.names))))


def build_model(cfg: Config, classes: ClassTable | None, tokenizer: TextTokenizer | None, trust: Sequence[str] = ()) -> torch.nn.Module:
    """Towers, head or combiner, and the model that joins them."""
    encoders = {}
    nodes, towers = cfg.get("encoder") or {}, stored_towers(cfg)
    with one_load():  # two towers of one CLIP read its file once
        for role, node in (towers.nodes(nodes) if towers else nodes).items():
            if node:
                given = {"tokenizer": tokenizer} if role == "text" else {}
                encoders[role] = instantiate(node, "encoder", trust, **given)
    for role, tower in encoders.items() if towers else ():
        towers.fill(role, tower)
    node, combiner = dict(cfg["model"]), cfg.get("combiner")
    head = node.pop("head", None)
    if node.get("projection_dim", 0) is None and encoders:  # the towers' own width; the model compares them
        node["projection_dim"] = width = next(iter(encoders.values())).dim
        head, combiner = (part | {"dim": width} if part and "dim" in part else part for part in (head, combiner))
    if combiner:
        if head:
            raise ConfigError("a combiner and model/head do not go together: choose model/head=none")
        return instantiate(node, "model", trust, encoders=encoders, combiner=instantiate(combiner, "combiner", trust))
    return instantiate(
        node,
        "model",
        trust,
        encoders=encoders,
        head=build_head(head, classes, trust),
        class_prompts=ClassPrompts.of(classes, tokenizer) if classes is not None and tokenizer is not None else None,
    )


def build_head(node: Config | None, classes: ClassTable | None, trust: Sequence[str]) -> torch.nn.Module | None:
    """The class head, or None."""
    if not node:
        return None
    if classes is None:
        raise ConfigError("model/head: this data set has no classes; choose model/head=none")
    return instantiate(node, "model", trust, classes=classes)


def build_objective(
    cfg: Config, model: torch.nn.Module, corpus: TokenCorpus | None, trust: Sequence[str] = (), keys: Sequence[int] | None = None
) -> Objective:
    """Model, loss and, where a similarity is chosen, the sequence term with a fresh loss of the same form.

    keys: positive keys of the training part; None where stored weights are loaded, which hold what a loss learns from keys.
    """
    similarity = instantiate(cfg["similarity"], "similarity", trust) if cfg.get("similarity") else None
    loss = instantiate(cfg["loss"], "loss", trust)
    loss.see_corpus(corpus)
    if keys is not None:
        loss.see_keys(torch.as_tensor(keys), contrastive_rows(cfg["trainer"]))
    sequence_loss = loss.for_scores() if similarity is not None else None
    return Objective(model, loss, similarity, sequence_loss, cfg["sequence_weight"], cfg["sequence_ramp_epochs"])


def build_loaders(
    cfg: Config, dataset: RecordDataset, parts: dict[str, list[int]], tokenizer: TextTokenizer | None, seed: int, place: "Placement"
) -> Loaders:
    """Loaders of all parts for this rank."""
    trainer = cfg["trainer"]
    micro = trainer["batch_size"] // (place.processes * trainer["accumulation"])
    return Loaders(
        dataset,
        parts,
        Collate(tokenizer, dataset.unit_length, dataset.pad_to, dataset.max_length),
        PlanSettings(
            batch_size=trainer["batch_size"],
            eval_batch_size=trainer["eval_batch_size"] or max(1, micro),
            accumulation=trainer["accumulation"],
            processes=place.processes,
            rank=place.rank,
            drop_last=trainer["drop_last"],
        ),
        worker_settings(cfg, place.device.type == "cuda"),
        seed,
        place.device,
    )


def worker_settings(cfg: Config, pinned: bool) -> WorkerSettings:
    """Loader processes; pinned: what trainer.pin_memory=null means."""
    trainer = cfg["trainer"]
    return WorkerSettings(
        num_workers=trainer["num_workers"],
        prefetch_factor=trainer["prefetch_factor"],
        pin_memory=pinned if trainer["pin_memory"] is None else trainer["pin_memory"],
        timeout_s=trainer["loader_timeout_s"],
    )


class Placement:
    """Where a part of the run lives: device, rank, number of processes."""

    def __init__(self, device: torch.device, rank: int = 0, processes: int = 1) -> None:
        self.device, self.rank, self.processes = device, rank, processes


def run_length(cfg: Config, steps_per_epoch: int) -> tuple[int, int]:
    """(optimizer steps, epochs) of a run: the smaller of trainer.epochs and trainer.max_steps ends it."""
    steps = cfg["trainer"]["epochs"] * steps_per_epoch
    if cfg["trainer"]["max_steps"] is not None:
        steps = min(steps, cfg["trainer"]["max_steps"])
    if steps < 1:
        raise ConfigError("trainer.epochs and trainer.max_steps leave no step to train")
    return steps, math.ceil(steps / steps_per_epoch)


def build_optimizer(
    cfg: Config, objective: Objective, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Optimizer over the parameter groups of all towers, and the rate's schedule, counted in optimizer steps."""
    node = cfg["optimizer"]
    groups = parameter_groups(objective, node["lr"], node.get("weight_decay", 0.0))
    warn_of_rates(objective, node["lr"])
    try:
        optimizer = instantiate(node, "optimizer", params=groups)
    except ValueError as error:  # torch's word on a number out of range
        raise ConfigError(f"optimizer: {error}") from error
    total, _ = run_length(cfg, steps_per_epoch)
    if cfg["trainer"]["max_steps"] is None:  # a length that was asked for needs no advice
        warn_of_few_steps(objective, total)
    given = {"total_steps": total, "steps_per_epoch": steps_per_epoch} if cfg["scheduler"]["_target_"].startswith("mmexpert.") else {}
    return optimizer, instantiate(cfg["scheduler"], "scheduler", optimizer=optimizer, **given)


def build_cache(cfg: Config, model: torch.nn.Module, dataset: RecordDataset, tokenizer: TextTokenizer | None) -> FeatureCache | None:
    """Tables in place of the frozen towers of a composed model, or None."""
    if not cfg.get("cache") or not getattr(model, "frozen", ()):
        return None
    towers = {role: {key: x for key, x in node.items() if key != "lr_scale"} for role, node in cfg["encoder"].items() if node}
    identity = {"towers": towers, "transform": cfg["dataset"].get("transform")}
    return FeatureCache(
        model,
        dataset,
        tokenizer,
        CacheSettings(Path(cfg["cache_dir"]) / "features", cfg["cache_batch_size"], identity, worker_settings(cfg, False)),
    )


def build_evaluator(cfg: Config, trust: Sequence[str] = ()) -> Any:
    """How the task is scored."""
    return instantiate(cfg["evaluator"], "evaluator", trust)
