"""Both towers of one CLIP (arXiv 2103.00020): encoder/image=clip, encoder/text=clip. Two leaves of one source read it once.

Shapes: B rows, C = 3 channels, S x S pixels, L patches or cells, M tokens of a text, J CLIP's joint width, D features.
CLIP's own projection to J is kept; where model.projection_dim is neither null nor J, a linear map without bias comes after it.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import InitVar, asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmexpert.encoders.base import Encoder
from mmexpert.encoders.clip_sizes import NAMES, VOCABULARY, ImageSizes, TextSizes, image_module, known, shallower, text_module
from mmexpert.encoders.clip_source import fill, locate_weights, resnet_tensors, stored_clip
from mmexpert.encoders.image import ImageEncoder, frozen_parts, warn_of_constants
from mmexpert.encoders.sources import TOKENIZER, find_source
from mmexpert.encoders.tokenizer import TextTokenizer, scratch_tokenizer
from mmexpert.types import ConfigError, Encoding, SourceError

log = logging.getLogger(__name__)
OPENAI_CONSTANTS = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
"""Mean and standard deviation of the pixels that OpenAI's towers were trained on, RGB in 0..1."""
SIZES_FILE = "clip.json"
"""What save_backbone writes and name=FOLDER reads: sizes without weights, which model.safetensors holds."""


@dataclass(kw_only=True, eq=False, repr=False)
class ClipImage(ImageEncoder):
    """The image tower. name: ViT-B/32, ViT-B/16, ViT-L/14, RN50, RN101, RN50x4.

    weights: pretrained (OpenAI's) | null (random) | a folder or file | a hub id | a tag of open_clip; what is stored with them says
    how large the tower is. backend: auto | transformers | open_clip, the form of the weights. layers: null, or at most so many a stack
    (of random towers). norm: batch | frozen. freeze_backbone: only the projections learn.
    """

    dim: int | None
    name: str
    weights: str | None
    backend: str
    layers: int | None
    norm: str
    freeze_backbone: bool

    def __post_init__(self) -> None:
        weights, side = self.weights, self.side
        if self.in_chans != 3:
            raise ConfigError(f"encoder.image.in_chans={self.in_chans}: a CLIP takes 3 channels; dataset.channels=3 copies grey")
        stored = None
        if weights is None:
            sizes = _saved_sizes(self.name, ImageSizes) or replace(known(self.name, "encoder.image.name").image, side=side)
            sizes = replace(sizes, layers=shallower(sizes.layers, self.layers))
        else:
            _refuse_layers(self.layers, "image")
            stored = stored_clip(self.name, weights, self.backend, "image")
            sizes = stored.image
        self.dim = sizes.joint if self.dim is None else self.dim
        super().__post_init__()
        self.sizes, self.fine_tuned = sizes, stored is not None and not self.freeze_backbone
        self.model, self.projection = image_module(sizes, side)
        self.joint = Joint(sizes.joint, self.dim)
        self.frozen = frozen_parts(self.model, self.freeze_backbone, self.norm)
        if stored is None:
            return
        if sizes.is_resnet:
            tensors = resnet_tensors(stored.tensors, self.model)
            fill(self.projection, tensors, "head.proj.")
            fill(self.model, tensors, "")
        else:
            fill(self.model, stored.tensors, "vision_model.")
            fill(self.projection, stored.tensors, "visual_projection.")
        if constants := stored.constants or (OPENAI_CONSTANTS if weights in ("pretrained", "openai") else None):
            warn_of_constants(weights, *constants, self.mean, self.std)
        if side != sizes.side:
            log.warning("encoder.image.side=%d: the weights of %s are made for %d; positions are interpolated", side, weights, sizes.side)

    def forward(self, image: Tensor) -> Encoding:
        """image [B, 3, S, S] -> features [B, D], sequence [B, L, D] in raster order, both through the projection."""
        self.check(image)
        if self.sizes.is_resnet:
            pooled, cells = self._attention_pool(self.model.forward_features(image))
            return Encoding(self.joint(self.projection(pooled)), self.joint(self.projection(cells)))
        hidden = self.model(pixel_values=image, interpolate_pos_encoding=self.side != self.sizes.side).last_hidden_state
        tokens = self.joint(self.projection(self.model.post_layernorm(hidden)))
        return Encoding(tokens[:, 0], tokens[:, 1:])

    def frozen_modules(self) -> list[nn.Module]:
        """All but the projections where the backbone is frozen, else the BatchNorm layers where their statistics are."""
        return self.frozen

    def save_backbone(self, folder: Path) -> None:
        """Writes the sizes, so that a saved model is built without a source."""
        _save_sizes(folder, self.sizes)

    def _attention_pool(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """grid [B, P, h, w] -> pooled [B, P]; cells [B, L, P]: each cell's value, as if it were attended to alone (arXiv 2112.01071)."""
        head = self.model.head
        return head(grid), head.v(grid.flatten(2).mT)


@dataclass(kw_only=True, eq=False, repr=False)
class ClipText(Encoder):
    """The text tower; keys as ClipImage's. Causal: the feature is the end-of-text token's.

    With weights=null the vocabulary comes from the training captions. The Encoding's mask marks words, not the tokens that frame them.
    """

    tokenizer: InitVar[TextTokenizer]
    dim: int | None
    lr_scale: float
    name: str
    weights: str | None
    backend: str
    layers: int | None
    max_length: int
    freeze_backbone: bool

    def __post_init__(self, tokenizer: TextTokenizer) -> None:
        stored = None
        if self.weights is None:
            sizes = _saved_sizes(self.name, TextSizes)
            sizes = sizes or replace(known(self.name, "encoder.text.name").text, vocabulary=tokenizer.vocab_size)
            sizes = replace(sizes, layers=shallower((sizes.layers,), self.layers)[0])
        else:
            _refuse_layers(self.layers, "text")
            stored = stored_clip(self.name, self.weights, self.backend, "text")
            sizes = stored.text
        if tokenizer.vocab_size > sizes.vocabulary:
            raise ConfigError(
                f"encoder.text.weights={self.weights}: the tokenizer has {tokenizer.vocab_size} entries, the tower {sizes.vocabulary}; "
                f"they are of different models"
            )
        if self.max_length > sizes.positions:
            raise ConfigError(f"encoder.text.max_length={self.max_length}: the tower takes at most {sizes.positions} tokens")
        super().__init__(sizes.joint if self.dim is None else self.dim, self.lr_scale)
        self.sizes, self.fine_tuned = sizes, stored is not None and not self.freeze_backbone
        self.model, self.projection = text_module(sizes)
        self.joint = Joint(sizes.joint, self.dim)
        self.register_buffer("special_ids", torch.tensor(tokenizer.special_ids))
        self.frozen = frozen_parts(self.model, self.freeze_backbone, "batch")
        if stored is not None:
            fill(self.model, stored.tensors, "text_model.")
            fill(self.projection, stored.tensors, "text_projection.")

    def forward(self, text: dict[str, Tensor]) -> Encoding:
        """text {input_ids, attention_mask} int64 [B, M], padded on the right -> features [B, D], sequence [B, M, D], mask [B, M]."""
        ids, real = text["input_ids"], text["attention_mask"]
        (hidden,) = text["hidden"] if "hidden" in text else self.hidden(text)
        tokens = self.joint(self.projection(hidden))
        ends = (real.sum(1) - 1).clamp(min=0)
        words = real.bool() & ~torch.isin(ids, self.special_ids)
        features = tokens.gather(1, ends[:, None, None].expand(-1, 1, tokens.shape[2]))[:, 0]
        return Encoding(features, tokens.where(words[..., None], 0), words)

    @property
    def fixed_backbone(self) -> bool:
        """Whether the model is frozen."""
        return self.freeze_backbone

    def hidden(self, text: dict[str, Tensor]) -> tuple[Tensor]:
        """The model's last layer [B, M, H]."""
        return (self.model(input_ids=text["input_ids"]).last_hidden_state,)  # no padding mask: what comes after a token does not reach it

    def frozen_modules(self) -> list[nn.Module]:
        """All but the projections where the backbone is frozen."""
        return self.frozen

    def save_backbone(self, folder: Path) -> None:
        """Writes the sizes, so that a saved model is built without a source."""
        _save_sizes(folder, self.sizes)

    @staticmethod
    def tokenizer_for(texts: list[str], node: dict[str, Any]) -> TextTokenizer:
        """The tokenizer beside the weights, else OpenAI's, which all of its models share; with weights=null one built from texts."""
        if node["weights"] is None:
            return scratch_tokenizer(texts, VOCABULARY, node["max_length"])
        from transformers import AutoTokenizer

        path, _ = locate_weights(node["name"], node["weights"], node["backend"], "text")
        folder = path if path.is_dir() else path.parent
        source: Any = folder
        if not any((folder / file).exists() for file in TOKENIZER[:3]):
            otherwise = f"copy a CLIP tokenizer's files into {folder}"
            source = find_source(NAMES["ViT-B/32"].hub, "encoder.text.weights (its tokenizer)", otherwise, (TOKENIZER[:3],))
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise SourceError(f"encoder.text.weights: no tokenizer can be read from {source}: {str(error).splitlines()[0]}") from error
        return TextTokenizer(tokenizer, node["max_length"])


class Joint(nn.Module):
    """[..., J] -> [..., D]: nothing where both are one width, else a linear map without bias."""

    def __init__(self, joint: int, dim: int) -> None:
        super().__init__()
        self.map = nn.Linear(joint, dim, bias=False) if joint != dim else None

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [..., J] -> [..., D]."""
        return tokens if self.map is None else self.map(tokens)


def _saved_sizes(name: str, kind: Callable[..., Any]) -> Any:
    """The sizes of a folder that save_backbone wrote; None for any other name."""
    file = Path(name) / SIZES_FILE
    if not file.is_file():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in content.items()})


def _refuse_layers(layers: int | None, role: str) -> None:
    if layers is not None:
        raise ConfigError(f"encoder.{role}.layers={layers} is for weights=null: stored weights have their own depth")


def _save_sizes(folder: Path, sizes: ImageSizes | TextSizes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SIZES_FILE).write_text(json.dumps(asdict(sizes), indent=1), encoding="utf-8")
