"""What a loaded model is given, as batches of its towers: pictures, radar clips, sentences. What fits nothing is a TypeError."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmexpert.data.collate import Collate
from mmexpert.data.views import Lengths, ViewTransform, check_lengths, check_view, view_names
from mmexpert.encoders.radar import ROWS
from mmexpert.encoders.tokenizer import TextTokenizer

Clip = dict[str, np.ndarray]
PICTURES = "a path, a PIL image, a uint8 array [H, W, 3], a list of these, or a float tensor [B, C, side, side] that is already prepared"


def picture_batches(pictures: Any, prepare: Callable[[Any, str], np.ndarray] | None, shape: tuple[int, int], size: int) -> Iterator[Tensor]:
    """Batches float32 [b, C, S, S] of at most `size` pictures, read as they are needed; shape: (C, S) of the tower.

    prepare: the stored preprocessing, (picture, name) -> [C, S, S], None where a model was stored without one. Raises TypeError for what
    is none of PICTURES, before anything is encoded, DataFault naming a file that can not be read.
    """
    if isinstance(pictures, Tensor):
        channels, side = shape
        if not pictures.is_floating_point() or pictures.ndim != 4 or tuple(pictures.shape[1:]) != (channels, side, side):
            found = f"{str(pictures.dtype).removeprefix('torch.')} {list(pictures.shape)}"
            raise TypeError(f"image: a tensor is float [B, {channels}, {side}, {side}], already prepared; this one is {found}")
        return iter(pictures.float().split(size)) if len(pictures) else iter(())
    listed = list(pictures) if isinstance(pictures, (list, tuple)) else [pictures]
    ready = [_checked(picture, f"picture {number}") for number, picture in enumerate(listed)]
    if ready and prepare is None:
        raise TypeError("image: this model was stored without its preprocessing: give float tensors [B, C, side, side], prepared")
    named = [(picture, str(picture) if isinstance(picture, Path) else f"picture {number}") for number, picture in enumerate(ready)]
    return (
        torch.from_numpy(np.stack([prepare(picture, name) for picture, name in named[i : i + size]])) for i in range(0, len(named), size)
    )


def clip_batches(clips: Clip | Sequence[Clip], node: dict[str, Any], size: int) -> Iterator[dict[str, Tensor]]:
    """Batches of radar clips, prepared as in the model's evaluation. node: the stored dataset. Raises TypeError naming the clip."""
    clips = [clips] if isinstance(clips, dict) else list(clips)
    transform = ViewTransform(node["normalize"], Lengths(node["max_length"], node["unit_length"], node["min_length"]), None)
    collate = Collate(None, node["unit_length"], "batch", node["max_length"])
    checked = [_checked_clip(clip, number, view_names(node["views"])) for number, clip in enumerate(clips)]
    return (collate([{"radar": transform(clip, None)[0]} for clip in checked[i : i + size]])["radar"] for i in range(0, len(checked), size))


def text_batches(texts: str | Sequence[str], tokenizer: Callable[[list[str]], dict[str, Tensor]] | None, size: int) -> Iterator[Any]:
    """Batches of tokenised sentences. Raises TypeError for anything but strings."""
    listed = [texts] if isinstance(texts, str) else list(texts)
    if tokenizer is None or any(not isinstance(text, str) for text in listed):
        raise TypeError("text: a sentence or a list of sentences, for a model with a text tower")
    return (tokenizer(listed[i : i + size]) for i in range(0, len(listed), size))


def _checked(picture: Any, name: str) -> Path | Image.Image | np.ndarray:
    if isinstance(picture, (str, Path)):
        return Path(picture)
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and (picture.ndim == 2 or picture.shape[2:] == (3,)):
        return picture
    found = f"{picture.dtype} {list(picture.shape)}" if isinstance(picture, (np.ndarray, Tensor)) else type(picture).__name__
    raise TypeError(f"image: {name} is {found}; accepted: {PICTURES}")


def _checked_clip(clip: Clip, number: int, names: Sequence[str]) -> Clip:
    if not isinstance(clip, dict) or any(name not in names for name in clip) or not clip:
        raise TypeError(f"clip {number}: a dict of some of {', '.join(names)} to arrays [F, T]")
    views = {name: check_view(np.asarray(clip[name]), name, f"clip {number}") for name in names if name in clip}
    check_lengths(views, f"clip {number}")
    return views


def graph_inputs(role: str, tower: Any, node: dict[str, Any], tokenizer: Any, rows: int) -> dict[str, Tensor]:
    """Inputs by name of a tower's graph, at full length, made up: what is fed to it is shaped so. Row 0 is short where a mask tells.

    tower: the encoder. node: the stored dataset. tokenizer: TextTokenizer of a text tower. Raises TypeError for another role.
    """
    random = torch.Generator().manual_seed(rows)
    if role == "image":
        return {"image": torch.randn(rows, tower.in_chans, tower.side, tower.side, generator=random)}
    if role == "radar":
        unit = node["unit_length"]
        tokens = -(-node["max_length"] // unit)
        lengths = unit * torch.randint(1, tokens + 1, (rows, 1), generator=random)
        mask = torch.arange(tokens * unit) < lengths
        views = {view: torch.rand(rows, ROWS[view], tokens * unit, generator=random) * mask[:, None] for view in tower.views}
        return views | {"mask": mask}
    if role == "text" and isinstance(tokenizer, TextTokenizer):
        most = tokenizer.max_length
        ids = torch.randint(0, tokenizer.vocab_size, (rows, most), generator=random).tolist()
        texts = [tokenizer.tokenizer.decode(line[: 1 + i * most // rows], skip_special_tokens=True) for i, line in enumerate(ids)]
        made = tokenizer.tokenizer(texts, padding="max_length", truncation=True, max_length=most, return_tensors="pt")
        return {name: made[name] for name in ("input_ids", "attention_mask")}
    raise TypeError(f"role {role!r}: graphs are made of towers for image, radar and text")


def trimmed(role: str, inputs: dict[str, Tensor], unit: int) -> Any:
    """Graph inputs as a batch of the tower, no longer than its longest row: what the model itself would have been given."""
    if role == "image":
        return inputs["image"]
    mask = inputs["mask" if role == "radar" else "attention_mask"]
    longest = int(mask.sum(1).max())
    longest = -(-longest // unit) * unit if role == "radar" else longest
    return {name: x[..., :longest] for name, x in inputs.items()}
