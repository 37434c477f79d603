"""Where a CLIP's weights come from, read once for both towers: a folder or a file of this machine, the hub cache, the hub.

Two forms: transformers' (config.json, model.safetensors) and open_clip's (a state dict with OpenAI's names). Both become one: names
of transformers' modules, but for ResNet towers, whose names timm converts itself.
"""

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mmexpert.encoders.clip_sizes import NAMES, ImageSizes, TextSizes, known, sizes_of_config, sizes_of_tensors
from mmexpert.encoders.sources import CONFIG, find_source, missing
from mmexpert.encoders.torch_file import read_torch
from mmexpert.types import ConfigError, SourceError

TRANSFORMERS = (CONFIG, ("model.safetensors", "pytorch_model.bin"))
OPEN_CLIP = (("open_clip_config.json",), ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"))
BACKENDS = ("auto", "transformers", "open_clip")
_BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OUTSIDE = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TURNED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}  # stored as x @ P


@dataclass(frozen=True)
class StoredClip:
    """Sizes and weights of both towers. constants: (mean, std) of the pixels that the image tower was made for, where known."""

    image: ImageSizes
    text: TextSizes
    tensors: dict[str, Tensor]
    constants: tuple[list[float], list[float]] | None


_LOADED: ContextVar[dict[tuple[str, str], StoredClip] | None] = ContextVar("loaded_clips", default=None)


@contextmanager
def one_load() -> Iterator[None]:
    """Within it, towers of one source read it once; what was read is freed at its end."""
    token = _LOADED.set({})
    try:
        yield
    finally:
        _LOADED.reset(token)


def stored_clip(name: str, weights: str, backend: str, role: str) -> StoredClip:
    """The CLIP of a leaf's keys. role: image | text, for messages. Raises SourceError where it is not to be had, never random weights."""
    loaded, key = _LOADED.get(), f"encoder.{role}.weights"
    path, form = locate_weights(name, weights, backend, role)
    if loaded is not None and (str(path), form) in loaded:
        return loaded[str(path), form]
    try:
        clip = _read(path, form)
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        first = next(iter(str(error).splitlines()), "")
        why = f"{path} can not be read as {form}'s form of a CLIP ({type(error).__name__}: {first})"
        raise SourceError(missing(weights, key, f"{key}=null, which starts from random weights", why)) from error
    if loaded is not None:
        loaded[str(path), form] = clip
    return clip


def locate_weights(name: str, weights: str, backend: str, role: str) -> tuple[Path, str]:
    """(file or folder on this machine, its form), fetched where it was not. Raises SourceError, ConfigError."""
    key = f"encoder.{role}.weights"
    if backend not in BACKENDS:
        raise ConfigError(f"encoder.{role}.backend={backend}: choose {', '.join(BACKENDS)}")
    path = Path(weights).expanduser()
    if path.is_file():
        beside = (path.parent / "config.json").is_file() and not path.name.startswith("open_clip")
        return path, ("transformers" if beside else "open_clip") if backend == "auto" else backend
    source, form = weights, backend
    if weights == "pretrained" or (not path.is_dir() and re.fullmatch(r"\w+", weights)):
        source, form = _hub_name(known(name, f"encoder.{role}.name"), name, weights, backend, role)
    elif form == "auto":
        has = path / "config.json"
        form = "open_clip" if path.is_dir() and not has.exists() else "transformers"
    files = TRANSFORMERS if form == "transformers" else OPEN_CLIP
    found = Path(find_source(source, key, f"{key}=null, which starts from random weights", files))
    return (found if found.is_dir() else _fetched(source, files, key)), form


def _hub_name(row: Any, name: str, weights: str, backend: str, role: str) -> tuple[str, str]:
    """(hub id, form) of OpenAI's weights, or of open_clip's under a tag."""
    if weights in ("pretrained", "openai"):
        form = backend if backend != "auto" else ("transformers" if row.hub else "open_clip")
        if form == "transformers" and row.hub is None:
            raise ConfigError(f"encoder.{role}.backend=transformers: there is no such form of {name}; choose open_clip")
        return (row.hub if form == "transformers" else row.open_clip), form
    try:
        from open_clip import get_pretrained_cfg
    except ImportError as error:
        raise ConfigError(
            f"encoder.{role}.weights={weights}: no folder or file of that name; a tag of open_clip needs pip install 'mmexpert[openclip]'"
        ) from error
    for tag_name in (row.tag_name, row.tag_name.removesuffix("-quickgelu")):
        if hub := get_pretrained_cfg(tag_name, weights).get("hf_hub"):
            return hub.rstrip("/"), "open_clip"
    raise ConfigError(f"encoder.{role}.weights={weights}: no folder or file, and open_clip has no such tag of {name} on the hub")


def _fetched(source: str, files: tuple[tuple[str, ...], ...], key: str) -> Path:
    """The snapshot folder of a hub model, its files downloaded: one of each group."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    folder, otherwise = None, f"{key}=null, which starts from random weights"
    for group in files:
        for file in group:
            try:
                folder = Path(hf_hub_download(source, file)).parent
                break
            except (OSError, HfHubHTTPError, EntryNotFoundError) as error:
                if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):  # local: the line is down
                    continue
                why = f"the hub did not give {file} ({str(error).strip().splitlines()[0]})"
                raise SourceError(missing(source, key, otherwise, why)) from error
        else:
            raise SourceError(missing(source, key, otherwise, f"it holds no {' or '.join(group)}"))
    return folder


def _read(path: Path, form: str) -> StoredClip:
    files = (TRANSFORMERS if form == "transformers" else OPEN_CLIP)[1]
    folder, file = (path.parent, path) if path.is_file() else (path, next(path / file for file in files if (path / file).exists()))
    tensors = {name: value for name, value in read_tensors(file).items() if value.is_floating_point()}
    tensors = {name.removeprefix("module."): value.float() for name, value in tensors.items()}  # fp32: stored ones may be half as wide
    if form == "transformers":
        content = _json(folder / "config.json")
        if content.get("model_type") != "clip":
            raise ValueError(f"config.json says model_type={content.get('model_type')!r}, expected 'clip'")
        image, text = sizes_of_config(content, len(tensors["text_model.embeddings.token_embedding.weight"]))
        content = _json(folder / "preprocessor_config.json")
        return StoredClip(image, text, tensors, _constants(content, "image_mean", "image_std"))
    content = _json(folder / "open_clip_config.json") if file.name.startswith("open_clip") else {}
    quick_gelu = content["model_cfg"].get("quick_gelu", False) if content else True  # a bare file is read as its name in NAMES would be
    if "text.token_embedding.weight" in tensors:  # open_clip's CustomTextCLIP
        tensors = {name.removeprefix("text."): value for name, value in tensors.items()}
    image, text = sizes_of_tensors(tensors, quick_gelu)
    return StoredClip(image, text, renamed(tensors), _constants(content.get("preprocess_cfg", {}), "mean", "std"))


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name. Nothing is unpickled, and no code is run but that of OpenAI's own files, known by their digests."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    if zipfile.is_zipfile(file) and any(name.endswith("/constants.pkl") for name in zipfile.ZipFile(file).namelist()):
        if hashlib.sha256(file.read_bytes()).hexdigest() not in {row.openai_sha256 for row in NAMES.values()}:
            raise ValueError("a TorchScript archive, which is code, and not one of OpenAI's files: store its state_dict() as .safetensors")
        return torch.jit.load(file, map_location="cpu").state_dict()
    content = read_torch(file)
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__}, expected a dict of tensors")
    return content.get("state_dict", content)


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's names as transformers'; the parts of a ResNet keep theirs."""
    is_resnet, found = "visual.layer1.0.conv1.weight" in tensors, {}
    for name, value in tensors.items():
        if is_resnet and name.startswith("visual."):
            found[name] = value
        elif name in _OUTSIDE:
            found[_OUTSIDE[name]] = value
        elif name in _TURNED:
            found[_TURNED[name]] = value.T.contiguous()
        elif match := re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", name):
            tower, number, part, kind = match.groups()
            stem = f"{'vision' if tower else 'text'}_model.encoder.layers.{number}"
            if part == "attn.in_proj":
                for piece, rows in zip("qkv", value.chunk(3), strict=True):
                    found[f"{stem}.self_attn.{piece}_proj.{kind}"] = rows
            else:
                found[f"{stem}.{_BLOCK[part]}.{kind}"] = value
    return found


def resnet_tensors(tensors: dict[str, Tensor], tower: nn.Module) -> dict[str, Tensor]:
    """A ResNet's tensors by the names of timm's tower; its projection is head.proj."""
    from timm.models.byobnet import checkpoint_filter_fn

    return checkpoint_filter_fn({name: value for name, value in tensors.items() if name.startswith("visual.")}, tower)


def fill(module: nn.Module, tensors: dict[str, Tensor], prefix: str) -> None:
    """Loads the tensors below a prefix. Raises SourceError where one is absent or of another shape: none stays random."""
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    try:
        absent = module.load_state_dict({name: own[name] for name in module.state_dict() if name in own}, strict=False).missing_keys
    except RuntimeError as error:
        why = str(error).splitlines()[-1].strip()
        raise SourceError(f"stored weights {prefix}*: {why}; sizes and weights are of different models") from error
    absent = [name for name in absent if not name.endswith(("num_batches_tracked", "position_ids"))]
    if absent:
        raise SourceError(f"stored weights: {prefix}{absent[0]} and {len(absent) - 1} more are absent: another model, or cut short")


def _constants(content: dict[str, Any], mean: str, std: str) -> tuple[list[float], list[float]] | None:
    return (list(content[mean]), list(content[std])) if mean in content and std in content else None


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
