"""Towers of a finished run, taken over by another (model.towers=RUN): their weights, their tokenizer, the same shape."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from mmexpert.encoders.tokenizer import TextTokenizer
from mmexpert.engine.step_folder import load_weights
from mmexpert.types import ConfigError, RunFolderError

Config = dict[str, Any]
_MAY_DIFFER = ("lr_scale", "weights", "freeze_backbone", "train_layers", "norm")  # of how a tower learns, not of what it computes


@dataclass(frozen=True)
class StoredTowers:
    """The model/ folder of a run: nodes by role, and where weights and tokenizer lie."""

    run: str
    folder: Path
    encoders: dict[str, Config]

    @classmethod
    def of(cls, run: str) -> "StoredTowers":
        """Opens a run folder or its model/ folder. Raises RunFolderError where there is no model."""
        for folder in (Path(run) / "model", Path(run)):
            if (folder / "model.safetensors").exists() and (folder / "config.json").exists():
                stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
                return cls(run, folder, {role: node for role, node in stored["encoder"].items() if node})
        raise RunFolderError(
            f"model.towers={run}: no model/ with model.safetensors and config.json there; a run writes it at its end, and a path counts "
            f"from here, {Path.cwd()}"
        )

    def nodes(self, wanted: dict[str, Config | None]) -> dict[str, Config | None]:
        """The wanted nodes, to be built without fetching anything: their weights come from here.

        Raises ConfigError naming the first key in which a tower differs from the stored one: the data set has been set up for the
        wanted towers, so none is exchanged in silence.
        """
        local = dict(wanted)
        for role, node in wanted.items():
            if not node:
                continue
            if role not in self.encoders:
                raise ConfigError(f"model.towers={self.run} has no tower {role}, it has {', '.join(self.encoders)}: train one with both")
            for key in sorted(set(node) | set(self.encoders[role])):
                here, there = node.get(key), self.encoders[role].get(key)
                if key not in _MAY_DIFFER and here != there:
                    raise ConfigError(
                        f"encoder.{role}.{key}={here}, but model.towers={self.run} has {there}: give its encoder options again"
                    )
            backbone = self.folder / f"backbone_{role}"
            stored = {"name": str(backbone)} if backbone.is_dir() else {}
            local[role] = node | stored | ({"weights": None} if "weights" in node else {})
        return local

    def tokenizer(self) -> TextTokenizer | None:
        """The stored tokenizer."""
        return TextTokenizer.load(self.folder / "tokenizer") if (self.folder / "tokenizer").is_dir() else None

    def fill(self, role: str, tower: nn.Module) -> None:
        """Loads the weights of one tower. Raises RunFolderError where names differ."""
        prefix = f"model.encoders.{role}."
        weights: dict[str, Tensor] = load_file(self.folder / "model.safetensors")
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        missing, unexpected = load_weights(tower, own)
        if missing or unexpected:
            raise RunFolderError(f"model.towers={self.run}, {role}: missing {missing[:5]}, unexpected {unexpected[:5]}")
