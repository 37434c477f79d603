"""What `mmexpert.evaluate features=FILE.npz` does: scores foreign features; writes outputs/evaluate/NAME/metrics.json."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mmexpert.command_line import composed, run_folder
from mmexpert.config import instantiate
from mmexpert.engine.files import sha256_file, strict_json, write_atomic
from mmexpert.evaluators.composed import ComposedEvaluator
from mmexpert.evaluators.feature_file import check_protocol, read_features, score_features
from mmexpert.own_keys import plain_name
from mmexpert.types import ConfigError

log = logging.getLogger(__name__)
FOLDER = Path("outputs") / "evaluate"
_FIGURES = ("R@", "Rs@", "average", "arithmetic_mean", "harmonic_mean", "geometric_mean", "mean_rank", "median_rank")


def evaluate_features(path: Path, overrides: Sequence[str], trust: Sequence[str]) -> dict[str, Any]:
    """Scores a file and returns what metrics.json holds. overrides: evaluator=composed, evaluator.KEY=..., name=NAME (else
    the file's name and the evaluator's keys: one protocol's result does not take another's place)."""
    name, evaluator = settings(path, overrides, trust)
    protocol = check_protocol(evaluator.protocol)
    combine = "sum" if evaluator.combine == "auto" else evaluator.combine
    metrics, told = score_features(read_features(path, protocol), protocol, combine, evaluator.ties)
    content = metrics | {"protocol": told | {"features": str(path), "sha256": sha256_file(path)}}
    out = FOLDER / name
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "metrics.json", strict_json(content, indent=1))
    log.info("%s: %d queries, gallery %d, %s by %s", path, told["queries"], told["gallery"], protocol, combine)
    for key, value in metrics.items():
        if key.startswith(_FIGURES):
            log.info("%-18s%8.3f", key, value)
    log.info("in %s", out / "metrics.json")
    return content


def settings(path: Path, overrides: Sequence[str], trust: Sequence[str]) -> tuple[str, ComposedEvaluator]:
    """(name of the output folder, evaluator). Raises ConfigError for keys that a feature file has no use for."""
    name, own = "", ["evaluator=composed"]
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "name":
            name = plain_name(value)
        elif key.startswith("evaluator."):
            own.append(override)
        elif override != "evaluator=composed":
            raise ConfigError(f"{override}: features=FILE takes name=, evaluator.protocol=, evaluator.combine= and evaluator.ties= alone")
    evaluator = instantiate(OmegaConf.to_container(composed(*own).evaluator, resolve=True), "evaluator", trust)
    return name or ",".join([path.stem, *([run_folder(own[1:])] if own[1:] else [])]), evaluator
