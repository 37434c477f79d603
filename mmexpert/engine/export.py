"""model/: what mmexpert.load() reads. Weights, plain configuration, tokenizer, classes and a model card; no data, no run."""

import os
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from mmexpert.engine.files import fsync_path, plain, sha256_file, strict_json, write_atomic
from mmexpert.engine.results import read_json, versions
from mmexpert.engine.secrets import masked
from mmexpert.engine.step_folder import read_weights
from mmexpert.types import ClassTable, StorageError

PARTS = ("encoder", "model", "combiner", "similarity", "dataset")
"""Nodes of the configuration that a loaded model needs: dataset for its transforms alone."""

MADE_BY = "Made by `"
"""What stands before the command in a model card."""


def save_model(
    folder: Path,
    objective: nn.Module,
    config: dict[str, Any],
    tokenizer: Any,
    classes: ClassTable | None,
    metrics: dict[str, Any],
    preparation: dict[str, Any],
    checkpoint: str,
) -> None:
    """Writes the folder whole: into a temporary one, then renamed over the old. preparation: nodes by role, fitted numbers included.

    checkpoint: name of the weights' folder below checkpoints/. The run's metrics.json and environment.json beside it go into the card.
    """
    temporary = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    parts = {"model": objective.model} | ({"similarity": objective.similarity} if objective.similarity is not None else {})
    weights = {
        f"{name}.{key}": value.detach().contiguous().cpu() for name, part in parts.items() for key, value in part.state_dict().items()
    }
    save_file(weights, temporary / "model.safetensors")
    if tokenizer is not None:
        tokenizer.save(temporary / "tokenizer")
    if classes is not None:
        write_atomic(temporary / "classes.json", strict_json(asdict(classes), indent=1))
    for role, encoder in objective.model.encoders.items():
        if hasattr(encoder, "save_backbone"):
            encoder.save_backbone(temporary / f"backbone_{role}")
    content = {
        "format": 1,
        **{name: masked(config.get(name)) for name in PARTS},
        "preparation": preparation,
        "sequence_weight": config["sequence_weight"],
        "roles": [objective.model.query, objective.model.target],
        "metrics": {name: value for name, value in metrics.items() if isinstance(value, (int, float))},
        "versions": versions(),
        "fingerprint": sha256_file(temporary / "model.safetensors"),
        "checkpoint": checkpoint,
    }
    write_atomic(temporary / "config.json", strict_json(content, indent=1))
    write_atomic(temporary / "README.md", model_card(config, metrics, objective.model) + origin(folder.parent))
    old = folder.with_name(f".old-{folder.name}")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)


def save_pth(folder: Path, checkpoints: dict[str, tuple[Path, dict[str, Any]]], config: dict[str, Any], classes: ClassTable | None) -> None:
    """checkpoint_NAME.pth for each (checkpoint folder, row of the history): {"model", "epoch", "metrics", "classes", "config"}.

    For programs that expect torch.save; nothing here reads them back. model: state of the model alone, without losses.
    """
    for name, (checkpoint, row) in checkpoints.items():
        weights = read_weights(checkpoint)
        content = {
            "model": {key.removeprefix("model."): value for key, value in weights.items() if key.startswith("model.")},
            "epoch": row["epoch"],
            "metrics": plain(row),
            "classes": list(classes.names) if classes is not None else None,
            "config": plain(masked(config)),
        }
        path = folder / f"checkpoint_{name}.pth"
        temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        try:
            torch.save(content, temporary)
            fsync_path(temporary)
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:  # what a full disk raises
            raise StorageError(f"{path}: not written ({error}); free space, or set trainer.export_pth=false") from error
        finally:
            temporary.unlink(missing_ok=True)


def model_card(config: dict[str, Any], metrics: dict[str, Any], model: nn.Module) -> str:
    """README.md of a model folder: task, data, metrics; the licence is for the owner to fill in. Figures of test, else of valid."""
    parts = [part for part in ("test/", "valid/") if any(name.startswith(part) for name in metrics)]
    rows = "\n".join(
        f"| {name} | {value:.4g} |" for name, value in metrics.items() if isinstance(value, float) and name.startswith(tuple(parts[:1]))
    )
    task = "reference picture and text against target picture" if hasattr(model, "compose") else f"{model.query} against {model.target}"
    data = config["dataset"]["_target_"].rsplit(".", 1)[1]
    return f"""# {config["name"]}
{task}, trained by mmexpert on {data}.

    import mmexpert
    model = mmexpert.load("this folder")

Licence:

| metric | value |
|---|---|
{rows}

Limits: figures hold for the data above; a gallery of another size gives other recalls.
"""


def origin(run: Path) -> str:
    """What a model card tells of the run's folder: the protocol of its figures, and its command with PATH for paths of the machine.

    Empty without a run; an unfinished one has no figures yet.
    """
    metrics, environment = run / "metrics.json", run / "environment.json"
    if not environment.exists():
        return ""
    lines = [""]
    if metrics.exists():
        lines += ["| part | protocol of the figures |", "|---|---|"]
        for part, protocol in read_json(metrics).get("protocol", {}).items():
            told = ", ".join(f"{key} {value}" for key, value in protocol.items() if isinstance(value, (str, int, float)) and key != "part")
            lines.append(f"| {part} | {told} |")
    pairs = [(word, *word.partition("=")[::2]) for word in shlex.split(read_json(environment)["command"])]
    command = " ".join(f"{key}=PATH" if "/" in value or "\\" in value else word for word, key, value in pairs)
    return "\n".join([*lines, "", f"{MADE_BY}{command}`", ""])
