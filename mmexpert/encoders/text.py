"""Text towers: a small BERT from random weights, or any Hugging Face model.

Shapes: B texts, M word pieces, D width. transformers is imported when a tower is built: it costs seconds.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmexpert.encoders.base import Encoder, require_keys, require_sizes
from mmexpert.encoders.pooling import masked_mean
from mmexpert.encoders.sources import CONFIG, TOKENIZER, WEIGHTS, find_source, missing
from mmexpert.encoders.tokenizer import TextTokenizer, scratch_tokenizer
from mmexpert.types import ConfigError, Encoding, SourceError

T = TypeVar("T")
_INSTEAD = "encoder/text=scratch, which needs no download"
_WORD_SPREAD, _POSITION_SPREAD = 1.0, 0.3  # standard deviations of the scratch tower's first embeddings


class TextEncoder(Encoder):
    """A transformers model and a projection to D; pooling mean | max | cls | pooler over its last layer.

    The Encoding's mask marks word pieces only: [CLS], [SEP] and padding belong to pooling, not to alignment.
    """

    def __init__(self, model: nn.Module, dim: int, lr_scale: float, pooling: str, special_ids: tuple[int, ...]) -> None:
        super().__init__(dim, lr_scale)
        if pooling not in ("mean", "max", "cls", "pooler"):
            raise ConfigError(f"encoder.text.pooling={pooling}: choose mean, max, cls or pooler")
        self.model, self.pooling = model, pooling
        self.projection = nn.Linear(model.config.hidden_size, dim)
        self.register_buffer("special_ids", torch.tensor(special_ids))
        self.freeze_backbone = False

    def frozen_modules(self) -> list[nn.Module]:
        """The whole model where it is frozen."""
        return [self.model] if self.freeze_backbone else []

    def forward(self, text: dict[str, Tensor]) -> Encoding:
        """text {input_ids, attention_mask} int64 [B, M] -> features [B, D], sequence [B, M, D], mask [B, M]."""
        tokens, pooled = text["hidden"] if "hidden" in text else self.hidden(text)
        sequence = self.projection(tokens)
        words = text["attention_mask"].bool() & ~torch.isin(text["input_ids"], self.special_ids)
        return Encoding(self.projection(pooled), sequence.where(words[..., None], 0), words)

    @property
    def fixed_backbone(self) -> bool:
        """Whether the model is frozen."""
        return self.freeze_backbone

    def hidden(self, text: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The model's last layer [B, M, H] and its pooling [B, H]."""
        output = self.model(input_ids=text["input_ids"], attention_mask=self.key_mask(text["attention_mask"]))
        return output.last_hidden_state, self._pool(output, output.last_hidden_state, text["attention_mask"].bool())

    def key_mask(self, attention_mask: Tensor) -> Tensor:
        """What the model is told of padding, from [B, M]."""
        return attention_mask

    def _pool(self, output: Any, tokens: Tensor, real: Tensor) -> Tensor:
        if self.pooling == "mean":
            return masked_mean(tokens, real)
        if self.pooling == "max":
            return tokens.masked_fill(~real[..., None], torch.finfo(tokens.dtype).min).amax(1)
        return tokens[:, 0] if self.pooling == "cls" else output.pooler_output


class ScratchText(TextEncoder):
    """BERT from random weights over a vocabulary built from the training captions; masked mean."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        dim: int,
        lr_scale: float,
        bert: dict[str, Any],
        vocab_size: int,
        max_length: int,
        freeze_backbone: bool,
    ) -> None:
        from transformers import BertConfig, BertModel

        require_keys(bert, ("width", "layers", "heads", "feedforward", "dropout", "init_std"), "encoder.text.bert")
        require_sizes(bert, ("width", "layers", "heads", "feedforward"), "encoder.text.bert")
        if bert["width"] % bert["heads"]:
            raise ConfigError(f"encoder.text.bert.heads={bert['heads']} does not divide the width {bert['width']}")
        if not isinstance(bert["init_std"], (int, float)) or not 0 < bert["init_std"] < math.inf:
            raise ConfigError(f"encoder.text.bert.init_std={bert['init_std']}: a standard deviation, above 0")
        if tokenizer.vocab_size > vocab_size:
            raise ConfigError(f"encoder.text.vocab_size={vocab_size}, but the tokenizer has {tokenizer.vocab_size} entries")
        config = BertConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=bert["width"],
            num_hidden_layers=bert["layers"],
            num_attention_heads=bert["heads"],
            intermediate_size=bert["feedforward"],
            hidden_dropout_prob=bert["dropout"],
            attention_probs_dropout_prob=bert["dropout"],
            max_position_embeddings=max_length,
            initializer_range=float(bert["init_std"]),
            attn_implementation="sdpa",
        )
        model = BertModel(config, add_pooling_layer=False)
        # BERT's own 0.02 lets position and type outweigh the words: all texts then start at a cosine of 0.96, and the loss stands still
        # for the first 100 steps
        nn.init.normal_(model.embeddings.word_embeddings.weight, std=_WORD_SPREAD)
        nn.init.normal_(model.embeddings.position_embeddings.weight, std=_POSITION_SPREAD)
        super().__init__(model, dim, lr_scale, "mean", tokenizer.special_ids)
        self.freeze_backbone = freeze_backbone
        if freeze_backbone:
            model.requires_grad_(False)

    def key_mask(self, attention_mask: Tensor) -> Tensor:
        """Boolean [B, 1, 1, M], used as it is: of a [B, M] one transformers asks whether all is True, which stalls a GPU."""
        return attention_mask.bool()[:, None, None]

    @staticmethod
    def tokenizer_for(texts: list[str], node: dict[str, Any]) -> TextTokenizer:
        """The tokenizer of a config node: built from texts, the training part's."""
        return scratch_tokenizer(texts, node["vocab_size"], node["max_length"])


class TransformersText(TextEncoder):
    """Any Hugging Face text model by hub name or local folder.

    freeze_backbone: only the projection learns. train_layers: all, or how many of the last layers learn.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        dim: int,
        lr_scale: float,
        name: str,
        pooling: str,
        freeze_backbone: bool,
        train_layers: int | str,
        max_length: int,
    ) -> None:
        model = _backbone(name)
        longest = min(getattr(model.config, "max_position_embeddings", max_length), tokenizer.longest)
        if max_length > longest:
            raise ConfigError(f"encoder.text.max_length={max_length}: {name} takes at most {longest} word pieces")
        if pooling == "pooler" and getattr(model, "pooler", None) is None:
            raise ConfigError(f"encoder.text.pooling=pooler: {name} has no pooler; choose mean, which such models are trained for")
        super().__init__(model, dim, lr_scale, pooling, tokenizer.special_ids)
        self.freeze_backbone, self.fine_tuned = freeze_backbone, not freeze_backbone
        if pooling != "pooler" and getattr(model, "pooler", None) is not None:
            model.pooler = None  # parameters that get no gradient break DDP
        if freeze_backbone:
            model.requires_grad_(False)
        elif train_layers != "all":
            _train_last(model, int(train_layers))

    def save_backbone(self, folder: Path) -> None:
        """Writes configuration and weights of the model, so that a saved model needs no hub."""
        self.model.save_pretrained(str(folder))

    @staticmethod
    def tokenizer_for(texts: list[str], node: dict[str, Any]) -> TextTokenizer:
        """The tokenizer that lies beside the model; texts are not used."""
        source = find_source(node["name"], "encoder.text.name", _INSTEAD, (CONFIG, WEIGHTS, TOKENIZER))
        from transformers import AutoTokenizer  # after the search: an error within a second, and the import alone takes longer

        tokenizer = _fetched(node["name"], lambda: AutoTokenizer.from_pretrained(source, trust_remote_code=False))
        return TextTokenizer(tokenizer, node["max_length"])


def _backbone(name: str) -> nn.Module:
    source = find_source(name, "encoder.text.name", _INSTEAD, (CONFIG, WEIGHTS))
    from transformers import AutoConfig, AutoModel

    config = _fetched(name, lambda: AutoConfig.from_pretrained(source, trust_remote_code=False))
    if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "hidden_size"):
        raise ConfigError(f"encoder.text.name={name} is a {config.model_type} model: choose a text encoder, such as BERT or MPNet")
    # fp32: transformers 5 would else keep weights stored in half precision so, and the optimizer with them
    return _fetched(name, lambda: AutoModel.from_pretrained(source, config=config, trust_remote_code=False, dtype=torch.float32))


def _fetched(name: str, read: Callable[[], T]) -> T:
    """What read gives; SourceError with the three ways on where files are missing, damaged or unknown to the hub."""
    try:
        return read()
    except (OSError, ValueError) as error:
        why = f"its files can not be read ({str(error).strip().splitlines()[0]})"
        raise SourceError(missing(name, "encoder.text.name", _INSTEAD, why)) from error


def _train_last(model: nn.Module, count: int) -> None:
    """Freezes all but the last `count` layers of the encoder stack."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not stacks or not 0 < count <= len(stacks[0]):
        raise ConfigError(f"encoder.text.train_layers={count}: write all, or 1 to {len(stacks[0]) if stacks else 0}")
    model.requires_grad_(False)
    for layer in stacks[0][-count:]:
        layer.requires_grad_(True)
