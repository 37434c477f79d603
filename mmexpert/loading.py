"""`mmexpert.load(run)`: a trained model as an object: encode, similarity, classify. No data set, no Hydra run, no network."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from mmexpert import build
from mmexpert.config import instantiate
from mmexpert.data.collate import Collate, to_device
from mmexpert.data.views import Lengths, ViewTransform, check_lengths, check_view, view_names
from mmexpert.encoders.tokenizer import TextTokenizer
from mmexpert.engine.step_folder import load_weights
from mmexpert.models.heads import ClassPrompts, class_features
from mmexpert.types import ClassTable, RunFolderError

Clip = dict[str, np.ndarray]


class LoadedModel:
    """A model in evaluation mode, fp32; results lie on the CPU and do not depend on the batch size.

    dim: width D. roles: (query, target). config: what the model was built from. fingerprint: SHA-256 of its weights.
    """

    def __init__(self, folder: Path, device: str, trust: Sequence[str]) -> None:
        self.config: dict[str, Any] = _read(folder / "config.json")
        text = folder / "tokenizer"
        self.tokenizer = TextTokenizer.load(text) if text.is_dir() else None
        self.classes = _classes(folder / "classes.json")
        self.device = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device)
        self.model = build.build_model(_local(self.config, folder), self.classes, self.tokenizer, trust).to(self.device).eval()
        weights = load_file(folder / "model.safetensors")
        own = {name.removeprefix("model."): value for name, value in weights.items() if name.startswith("model.")}
        missing, unexpected = load_weights(self.model, own)
        if missing or unexpected:
            raise RunFolderError(f"{folder}: weights and config.json differ: missing {missing[:5]}, unexpected {unexpected[:5]}")
        self.similarity_head = None
        if self.config.get("similarity"):
            self.similarity_head = instantiate(self.config["similarity"], "similarity", trust).to(self.device).eval()
            load_weights(
                self.similarity_head, {n.removeprefix("similarity."): v for n, v in weights.items() if n.startswith("similarity.")}
            )
        self.roles = tuple(self.config["roles"])
        self.dim = self.config["model"]["projection_dim"]
        self.fingerprint = self.config["fingerprint"]

    def encode(self, role: str, inputs: Any, batch_size: int = 64, normalize: bool = True) -> Tensor:
        """Features fp32 [N, D]. radar: a clip {view: [F, T]} of stored amplitudes, or a list of them; text: a sentence or a list."""
        if role == "text":
            return self.encode_text(inputs, batch_size, normalize)
        if role == "radar":
            return self.encode_radar(inputs, batch_size, normalize)
        raise TypeError(f"role {role!r}: this model encodes {', '.join(self.roles)}")

    def encode_text(self, texts: str | Sequence[str], batch_size: int = 64, normalize: bool = True) -> Tensor:
        """Features of one sentence or several."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        if self.tokenizer is None or any(not isinstance(text, str) for text in texts):
            raise TypeError("text: a sentence or a list of sentences, for a model with a text tower")
        return self._encode("text", [self.tokenizer(texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)], normalize)

    def encode_radar(self, clips: Clip | Sequence[Clip], batch_size: int = 64, normalize: bool = True) -> Tensor:
        """Features of clips {range_time [256, T], doppler_time [128, T], azimuth_time [128, T]}, prepared as in the model's evaluation."""
        clips = [clips] if isinstance(clips, dict) else list(clips)
        node = self.config["dataset"]
        transform = ViewTransform(node["normalize"], Lengths(node["max_length"], node["unit_length"], node["min_length"]), None)
        collate = Collate(None, node["unit_length"], "batch", node["max_length"])
        samples = [{"radar": transform(self._checked(clip, number), None)[0]} for number, clip in enumerate(clips)]
        batches = [collate(samples[i : i + batch_size])["radar"] for i in range(0, len(samples), batch_size)]
        return self._encode("radar", batches, normalize)

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """Cosine [Na, Nb] of two sets of features."""
        return F.normalize(a.float(), dim=1) @ F.normalize(b.float(), dim=1).T

    def classify(self, inputs: Any, class_texts: dict[str, Sequence[str]] | None = None) -> Tensor:
        """Probabilities [N, K] of the query inputs over the stored classes, or over others by their texts (zero-shot)."""
        features = self.encode(self.roles[0], inputs)
        table = self.classes
        if class_texts is not None:
            table = ClassTable(tuple(class_texts), tuple(tuple([t] if isinstance(t, str) else t) for t in class_texts.values()), ())
        if table is None:
            raise TypeError("this model has no classes: give class_texts={name: [sentence, ...]}")
        prompts = ClassPrompts.of(table, self.tokenizer)
        texts = class_features(self.encode_text([t for ts in table.texts for t in ts]), prompts.owner, len(table.names))
        scale = float(getattr(self.model.head, "logit_scale", torch.tensor(1 / 0.07).log()).exp())
        return torch.softmax(scale * features @ texts.T, 1)

    def _checked(self, clip: Clip, number: int) -> Clip:
        names = view_names(self.config["dataset"]["views"])
        if not isinstance(clip, dict) or any(name not in names for name in clip) or not clip:
            raise TypeError(f"clip {number}: a dict of some of {', '.join(names)} to arrays [F, T]")
        views = {name: check_view(np.asarray(clip[name]), name, f"clip {number}") for name in names if name in clip}
        check_lengths(views, f"clip {number}")
        return views

    def _encode(self, role: str, batches: list[dict[str, Tensor]], normalize: bool) -> Tensor:
        with torch.inference_mode():
            parts = [self.model.encode(role, to_device(batch, self.device)).features.float().cpu() for batch in batches]
        features = torch.cat(parts) if parts else torch.zeros(0, self.dim)
        return F.normalize(features, dim=1) if normalize else features


def load(path: str | Path, device: str = "auto", trust: Sequence[str] = ()) -> LoadedModel:
    """Opens a run folder (with folds: its final/, which cv.refit makes), one of its folds, or a model/ folder.

    device: auto | cpu | cuda. trust: packages of your own parts.

    Raises RunFolderError where there is no model, ConfigError where its config names a foreign class.
    """
    path = Path(path)
    folder = next(
        (
            folder
            for folder in (path / "model", path / "final" / "model", path)
            if (folder / "model.safetensors").exists() and (folder / "config.json").exists()
        ),
        None,
    )
    if folder is None:
        folds = sorted(fold.name for fold in path.glob("fold_*") if (fold / "model").is_dir())
        of_fold = f"; this run has folds, load one: {path / folds[0]}" if folds else ""
        raise RunFolderError(f"{path}: no model/ with model.safetensors and config.json; a run writes it at its end{of_fold}")
    return LoadedModel(folder, device, trust)


def _read(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    if "${" in text:
        raise RunFolderError(f"{path} holds '${{': a stored configuration is plain data, and nothing of it is resolved")
    return json.loads(text)


def _classes(path: Path) -> ClassTable | None:
    if not path.exists():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    return ClassTable(tuple(stored["names"]), tuple(tuple(texts) for texts in stored["texts"]), tuple(stored["counts"]))


def _local(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration with pretrained names replaced by the backbones that lie in the model folder: nothing is fetched."""
    encoders = dict(config["encoder"])
    for role, node in encoders.items():
        if node and (folder / f"backbone_{role}").is_dir():
            encoders[role] = node | {"name": str(folder / f"backbone_{role}")}
        elif node and "weights" in node:
            encoders[role] = node | {"weights": None}  # its own are loaded below
    return config | {"encoder": encoders}
