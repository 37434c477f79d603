"""`mmexpert.load(run)`: a trained model as an object: encode, similarity, classify. No data set, no Hydra run, no network."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from mmexpert import build
from mmexpert.config import instantiate
from mmexpert.data.collate import to_device
from mmexpert.encoders.tokenizer import TextTokenizer
from mmexpert.engine.files import sha256_file
from mmexpert.engine.graph import export_graph
from mmexpert.engine.step_folder import MODEL, load_weights, read_weights
from mmexpert.loaded_inputs import Clip, clip_batches, graph_inputs, picture_batches, text_batches, trimmed
from mmexpert.model_folder import model_folder
from mmexpert.models.heads import class_features
from mmexpert.sharing import push_model, save_shared
from mmexpert.types import ClassTable, ConfigError, RunFolderError

_TEMPERATURE = 0.07  # of cosines that no head has scaled: the losses' first one


class LoadedModel:
    """A model in evaluation mode, fp32 (towers in bf16 where asked for); results lie on the CPU and do not depend on the batch size.

    dim: width D. roles: (query, target). config: what the model was built from. fingerprint: SHA-256 of its weights. class_names: in
    the order of classify's columns, empty without classes.
    """

    def __init__(self, folder: Path, device: str, trust: Sequence[str], precision: str, checkpoint: Path | None) -> None:
        if precision not in ("fp32", "bf16"):
            raise ConfigError(f"precision={precision}: choose fp32 or bf16")
        self.folder, self.checkpoint = folder, checkpoint
        self.config: dict[str, Any] = _read(folder / "config.json")
        text = folder / "tokenizer"
        self.tokenizer = TextTokenizer.load(text) if text.is_dir() else None
        self.classes = _classes(folder / "classes.json")
        self.class_names = self.classes.names if self.classes else ()
        self.device = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device)
        self.model = build.build_model(_local(self.config, folder), self.classes, self.tokenizer, trust).to(self.device).eval()
        weights = load_file(folder / MODEL)
        if checkpoint is not None:  # which holds losses too, and no towers that were tables in training
            weights |= {name: value for name, value in read_weights(checkpoint).items() if name in weights}
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
        nodes = self.config.get("preparation", {})
        self.preparation = {role: instantiate(node, "dataset", trust) for role, node in nodes.items()}
        self.precision = precision
        self.roles = tuple(self.config["roles"])
        self.dim = next(iter(self.model.encoders.values())).dim
        self.fingerprint = self.config["fingerprint"] if checkpoint is None else sha256_file(checkpoint / MODEL)

    def encode(self, role: str, inputs: Any, batch_size: int = 64, normalize: bool = True) -> Tensor:
        """Features fp32 [N, D] of one input or several of a role: image, text or radar, as the method of that name takes them."""
        readers = {"image": self.encode_image, "text": self.encode_text, "radar": self.encode_radar}
        if role not in self.model.encoders or role not in readers:
            raise TypeError(f"role {role!r}: this model encodes {', '.join(self.model.encoders)}")
        return readers[role](inputs, batch_size, normalize)

    def encode_image(self, x: Any, batch_size: int = 64, normalize: bool = True) -> Tensor:
        """Features of a path, PIL image, uint8 array [H, W, 3], list of these, or float tensor [B, C, side, side] already prepared.

        Decoding, size and constants are the training's, stored with the model. flip=canonical is the caller's: mirror films of side L.
        """
        tower = self._tower("image")
        batches = picture_batches(x, self.preparation.get("image"), (tower.in_chans, tower.side), batch_size)
        return self._encode("image", batches, normalize)

    def encode_text(self, texts: str | Sequence[str], batch_size: int = 64, normalize: bool = True) -> Tensor:
        """Features of one sentence or several."""
        self._tower("text")
        return self._encode("text", text_batches(texts, self.tokenizer, batch_size), normalize)

    def encode_radar(self, clips: Clip | Sequence[Clip], batch_size: int = 64, normalize: bool = True) -> Tensor:
        """Features of clips {range_time [256, T], doppler_time [128, T], azimuth_time [128, T]}, prepared as in the model's evaluation."""
        self._tower("radar")
        return self._encode("radar", clip_batches(clips, self.config["dataset"], batch_size), normalize)

    def compose(self, reference: Any, text: str | Sequence[str], batch_size: int = 64) -> Tensor:
        """Query features, unit rows fp32 [N, D], of reference pictures (one or a list, as encode_image takes them) and as many texts.

        Raises TypeError where the model does not compose, or pictures and texts differ in number.
        """
        if not hasattr(self.model, "compose"):
            raise TypeError(f"this model does not compose; it encodes {', '.join(self.model.encoders)}: train one with model=composed")
        texts = [text] if isinstance(text, str) else list(text)
        pictures = self.encode_image(reference, batch_size, normalize=False)
        if len(texts) != len(pictures):
            raise TypeError(f"{len(pictures)} reference pictures and {len(texts)} texts: give as many of each")
        with self._running(self.precision):
            parts = [
                self.model.compose(rows.to(self.device), to_device(tokens, self.device)).float().cpu()
                for rows, tokens in zip(pictures.split(batch_size), text_batches(texts, self.tokenizer, batch_size), strict=False)
            ]  # no picture is one empty block, no text is none
        return torch.cat(parts) if parts else pictures

    def similarity(self, a: Tensor, b: Tensor) -> Tensor:
        """Cosine [Na, Nb] of two sets of features."""
        return F.normalize(a.float(), dim=1) @ F.normalize(b.float(), dim=1).T

    def classify(self, inputs: Any, class_texts: dict[str, Sequence[str]] | None = None, batch_size: int = 64) -> Tensor:
        """Probabilities fp32 [N, K] of the query inputs; columns are class_names, or the keys of class_texts (zero-shot).

        As the run's predictions.csv under evaluator.rank_by=pooled: by the model's own head, else by cosines with the class texts; no
        similarity takes part. Raises TypeError for a model without classes, and for class_texts beside a linear head, which knows its
        own classes alone.
        """
        head, by_class = getattr(self.model, "head", None), self._class_texts(class_texts)
        if class_texts is not None and not _reads_texts(head):
            raise TypeError("class_texts: this model has a linear head, which knows its own classes alone; train with model/head=text")
        features = self.encode(self.roles[0], inputs, batch_size, normalize=False).to(self.device)
        texts = self._class_features(by_class) if _reads_texts(head) else None
        if class_texts is not None:
            head = getattr(head, "text", head)  # of a head that has a linear part too
        with torch.inference_mode():
            logits = F.normalize(features, dim=1) @ texts.T / _TEMPERATURE if head is None else head(features, texts)
        return torch.softmax(logits.double(), 1).float().cpu()

    def save(self, folder: str | Path) -> Path:
        """Writes the model folder, without paths of data; returns where. Raises RunFolderError where something else lies there."""
        return save_shared(self._reported(), Path(folder))

    def export(self, file: str | Path, role: str, format: str = "onnx") -> float:  # noqa: A002  the name of the command's key
        """Writes a role's tower as a graph (onnx | torch) of dynamic batch, and FILE.json on its inputs; returns its difference."""
        tower, node = self._tower(role), self.config["dataset"]
        given = [graph_inputs(role, tower, node, self.tokenizer, rows) for rows in (2, 1, 5)]
        batches = [[trimmed(role, inputs, node.get("unit_length", 1))] for inputs in given]
        samples = [(inputs, self._encode(role, batch, True, "fp32")) for inputs, batch in zip(given, batches, strict=True)]
        about = {"role": role, "fingerprint": self.fingerprint, "preparation": self.config.get("preparation", {}).get(role)}
        return export_graph(tower, samples, Path(file), format, about)

    def push(self, name: str, private: bool = True) -> str:
        """Uploads what save() writes to the Hugging Face hub as USER/NAME; returns its address. The list of files is logged before.

        Raises ConfigError where a secret or the path of data is found in a file: then nothing is sent.
        """
        return push_model(self._reported(), name, private)

    def _reported(self) -> Path:
        """The model folder. Raises RunFolderError for weights of another checkpoint: figures and card are not theirs."""
        if self.checkpoint is not None:
            raise RunFolderError(f"{self.checkpoint}: the figures of the model card are those of {self.folder}; save that one")
        return self.folder

    def _class_texts(self, class_texts: dict[str, Sequence[str]] | None) -> dict[str, tuple[str, ...]]:
        """Sentences by class: those given, else the stored ones."""
        if class_texts is None and self.classes is None:
            raise TypeError("this model has no classes: give class_texts={name: [sentence, ...]}")
        if class_texts is None:
            return dict(zip(self.class_names, self.classes.texts, strict=True))
        texts = {name: (text,) if isinstance(text, str) else tuple(text) for name, text in class_texts.items()}
        if not texts or not all(texts.values()):
            raise TypeError("class_texts: give one or more classes, each with one or more sentences")
        return texts

    def _class_features(self, by_class: dict[str, tuple[str, ...]]) -> Tensor:
        """Unit rows [K, D]: the mean of each class's sentences."""
        owner = torch.tensor([k for k, sentences in enumerate(by_class.values()) for _ in sentences])
        found = self.encode_text([sentence for sentences in by_class.values() for sentence in sentences])
        return class_features(found, owner, len(by_class)).to(self.device)

    def _tower(self, role: str) -> Any:
        if role not in self.model.encoders:
            raise TypeError(f"role {role!r}: this model encodes {', '.join(self.model.encoders)}")
        return self.model.encoders[role]

    def _encode(self, role: str, batches: Iterable[Any], normalize: bool, precision: str | None = None) -> Tensor:
        with self._running(precision or self.precision):
            parts = [self.model.encode(role, to_device(batch, self.device)).features.float().cpu() for batch in batches]
        features = torch.cat(parts) if parts else torch.zeros(0, self.dim)
        return F.normalize(features, dim=1) if normalize else features

    @contextmanager
    def _running(self, precision: str) -> Iterator[None]:
        """No gradients, in a precision."""
        kind = self.device.type
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16"), _full_precision(kind):
            yield


def _reads_texts(head: Any) -> bool:
    return head is None or head.needs_class_texts


def _full_precision(kind: str) -> AbstractContextManager:
    """Convolutions in fp32 proper: TF32, a GPU's default, makes features depend on the batch size."""
    if kind != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def load(path: str | Path, device: str = "auto", trust: Sequence[str] = (), precision: str = "fp32") -> LoadedModel:
    """Opens a run folder (with folds: its final/, which cv.refit makes), one of its folds, a checkpoint of these, or a model/ folder.

    device: auto | cpu | cuda. trust: packages of your own parts. precision: fp32 | bf16.

    Raises RunFolderError where there is no model, ConfigError where its config names a foreign class.
    """
    folder, checkpoint = model_folder(Path(path))
    return LoadedModel(folder, device, trust, precision, checkpoint)


def _read(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    if "${" in text:
        raise RunFolderError(f"{path} holds '${{': a stored configuration is plain data, and nothing of it is resolved")
    return json.loads(text)


def _classes(path: Path) -> ClassTable | None:
    if not path.exists():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    texts = tuple(tuple(texts) for texts in stored["texts"])
    return ClassTable(tuple(stored["names"]), texts, tuple(stored["counts"]), stored.get("ordered", False))


def _local(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration with pretrained names replaced by the backbones that lie in the model folder: nothing is fetched."""
    encoders = dict(config["encoder"])
    for role, node in encoders.items():
        if node and (folder / f"backbone_{role}").is_dir():
            encoders[role] = node | {"name": str(folder / f"backbone_{role}")}
        if node and "weights" in node:
            encoders[role] = encoders[role] | {"weights": None}  # its own are loaded below
    nulled = {"model": ("towers",), "combiner": ("weights",)}
    parts = {name: _without_sources(config[name], keys) for name, keys in nulled.items() if config.get(name)}
    return config | {"encoder": encoders} | parts


def _without_sources(node: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The node with what names other files taken out: all weights lie in the model folder."""
    return node | {key: None for key in keys if key in node}
