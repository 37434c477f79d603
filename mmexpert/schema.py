"""Names and types of the run-level keys; values stand in conf/train.yaml and conf/trainer alone."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

RANGES: dict[str, tuple[float, bool, bool]] = {
    "seed": (0, True, False),
    "expect_processes": (1, True, True),
    "sequence_weight": (0, True, False),
    "sequence_ramp_epochs": (0, True, False),
    "cache_batch_size": (1, True, False),
    "trainer.epochs": (1, True, False),
    "trainer.max_steps": (1, True, True),
    "trainer.batch_size": (1, True, False),
    "trainer.eval_batch_size": (1, True, True),
    "trainer.accumulation": (1, True, False),
    "trainer.val_every": (1, True, False),
    "trainer.max_grad_norm": (0, False, True),
    "trainer.nonfinite_budget": (0, True, False),
    "trainer.poll_every": (1, True, True),
    "trainer.early_stopping.patience": (0, True, True),
    "trainer.early_stopping.min_delta": (0, True, False),
    "trainer.keep_last": (1, True, False),
    "trainer.save_every_minutes": (0, False, True),
    "trainer.save_every_steps": (1, True, True),
    "trainer.num_workers": (0, True, False),
    "trainer.prefetch_factor": (1, True, False),
    "trainer.loader_timeout_s": (1, True, False),
    "trainer.group_timeout_s": (1, True, False),
    "trainer.log_every": (1, True, False),
}
"""Key -> (least value, whether that itself is allowed, whether null is); no value is infinite."""
PARTS_OF_DATA = ("train", "valid", "test")


@dataclass
class EarlyStoppingKeys:
    """trainer.early_stopping."""

    monitor: str | None = MISSING
    patience: int | None = MISSING
    min_delta: float = MISSING


@dataclass
class TrainerKeys:
    """trainer: length, batch, numerics, choice, loading and logging; meanings and units in conf/trainer."""

    epochs: int = MISSING
    max_steps: int | None = MISSING
    batch_size: int = MISSING
    eval_batch_size: int | None = MISSING
    accumulation: int = MISSING
    accumulate: str = MISSING
    drop_last: bool = MISSING
    val_every: int = MISSING
    device: str = MISSING
    mixed_precision: Any = MISSING  # `no` is a boolean in YAML 1.1; checked by engine/runtime.py
    grad_checkpointing: bool = MISSING
    compile: str = MISSING
    loss_tile: str = MISSING
    loss_exchange: str = MISSING
    max_grad_norm: float | None = MISSING
    deterministic: bool = MISSING
    nonfinite: str = MISSING
    nonfinite_budget: int = MISSING
    poll_every: int | None = MISSING
    monitor: Any = MISSING  # a key or a list of keys
    mode: str | None = MISSING
    early_stopping: EarlyStoppingKeys = MISSING
    save_top_k: int = MISSING
    keep_last: int = MISSING
    save_every_minutes: float | None = MISSING
    save_every_steps: int | None = MISSING
    num_workers: int = MISSING
    prefetch_factor: int = MISSING
    pin_memory: bool | None = MISSING
    loader_timeout_s: int = MISSING
    group_timeout_s: int = MISSING
    log_every: int = MISSING
    export_pth: bool = MISSING


@dataclass
class RunKeys:
    """The run-level keys; meanings in conf/train.yaml. Group nodes are checked by the classes that they name."""

    name: str = MISSING
    seed: int = MISSING
    resume: str = MISSING
    init_from: str | None = MISSING
    init_strict: bool = MISSING
    dry_run: bool = MISSING
    expect_processes: int | None = MISSING
    allow_world_change: bool = MISSING
    final_parts: Any = MISSING  # a list out of train, valid, test
    data_check: str = MISSING
    sequence_weight: float = MISSING
    sequence_ramp_epochs: float = MISSING
    trainer: TrainerKeys = MISSING
    encoder: Any = MISSING
    model: Any = MISSING
    combiner: Any = MISSING
    cache: bool = MISSING
    cache_batch_size: int = MISSING
    cache_dir: str = MISSING
    similarity: Any = MISSING
    loss: Any = MISSING
    dataset: Any = MISSING
    cv: Any = MISSING
    evaluator: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    tracker: Any = MISSING
