"""The files of a run that are neither checkpoint nor log: configuration, environment, metrics, results; secrets masked."""

import importlib.metadata
import json
import platform
import shlex
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mmexpert.engine.files import csv_text, sha256_file, strict_json, write_atomic
from mmexpert.engine.secrets import mask_text, masked

_LIBRARIES = ("torch", "numpy", "accelerate", "transformers", "hydra-core", "scikit-learn", "safetensors", "timm")


def versions() -> dict[str, str]:
    """Python, this package and the libraries whose change can change a number."""
    found = {"python": platform.python_version()}
    for name in ("mmexpert", *_LIBRARIES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def write_run_files(
    folder: Path, config: dict[str, Any], overrides: list[str], config_hash: str, processes: int, beside: Sequence[str] = ()
) -> None:
    """config.yaml, config.json and environment.json. beside: what else the command says, trust= and of Hydra."""
    import yaml

    clean = masked(config)
    write_atomic(folder / "config.yaml", yaml.safe_dump(clean, sort_keys=False, allow_unicode=True))
    write_atomic(
        folder / "config.json", strict_json({"config": clean, "overrides": masked(overrides), "config_hash": config_hash}, indent=1)
    )
    environment = {
        "command": mask_text(command([*overrides, *beside], processes)),
        "versions": versions(),
        "platform": platform.platform(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or [platform.processor() or "cpu"],
        "threads": torch.get_num_threads(),
        "processes": processes,
        "host": socket.gethostname(),
        "git": git_state(),
    }
    write_atomic(folder / "environment.json", strict_json(environment, indent=1))


def command(arguments: list[str], processes: int) -> str:
    """The exact command that reproduces the run."""
    start = "python" if processes == 1 else f"torchrun --nproc_per_node {processes}"
    return f"{start} -m mmexpert.train {shlex.join(arguments)}".rstrip()


def git_state() -> dict[str, Any]:
    """Commit of the package's checkout and whether it is clean; empty for an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return {}
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": head, "clean": not dirty.strip()}


def provenance(config: dict[str, Any], weights: Path, data: str) -> dict[str, Any]:
    """What a protocol says of where its numbers come from: positives, fingerprints of weights file and data, pretrained weights by role."""
    towers = {role: node for role, node in (config.get("encoder") or {}).items() if node}
    tags = {role: "/".join(str(node[key]) for key in ("name", "weights") if node.get(key)) for role, node in towers.items()}
    return {
        "positives": config["dataset"].get("positives"),
        "fingerprint_checkpoint": sha256_file(weights) if weights.is_file() else None,
        "fingerprint_data": data,
        "weights": {role: tag or "from scratch" for role, tag in tags.items()},
    }


def write_metrics(folder: Path, metrics: dict[str, Any], protocol: dict[str, Any]) -> None:
    """metrics.json: flat valid/... of the reported epoch (best_epoch: the best, under cv.selection=last the last), its monitored value
    best_value, test/... of its weights, protocol."""
    write_atomic(folder / "metrics.json", strict_json(metrics | {"protocol": protocol}, indent=1))


def write_training_results(folder: Path, content: dict[str, Any]) -> None:
    """training_results.json: name, state, stopped, best_epoch, best, final, protocol, config, history, versions, seconds."""
    write_atomic(folder / "training_results.json", strict_json(masked(content) | {"versions": versions()}, indent=1))


def write_predictions(folder: Path, rows: list[dict[str, Any]], tables: dict[str, Any]) -> None:
    """predictions.csv; per_class.csv and confusion.csv where there are classes, ranks.csv of composed queries."""
    if rows:
        write_atomic(folder / "predictions.csv", csv_text(rows))
    for name in ("per_class", "confusion"):
        if name in tables:
            write_atomic(folder / f"{name}.csv", csv_text(tables[name]))
    if "queries" in tables:
        write_atomic(folder / "ranks.csv", csv_text(tables["queries"]))


def write_data_report(folder: Path, report: dict[str, Any], dropped: list[tuple[str, str, str]]) -> None:
    """data_report.json, and dropped.csv where records were left out."""
    write_atomic(folder / "data_report.json", strict_json(report, indent=1))
    if dropped:
        rows = [dict(zip(("file", "record", "reason"), row, strict=True)) for row in dropped]
        write_atomic(folder / "dropped.csv", csv_text(rows))


def read_json(path: Path) -> Any:
    """Parsed JSON of a file."""
    return json.loads(path.read_text(encoding="utf-8"))
