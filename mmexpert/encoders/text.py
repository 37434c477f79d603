"""Text towers: a small BERT from random weights, or any Hugging Face model.

Shapes: B texts, M word pieces, D width. transformers is imported when a tower is built: it costs seconds.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmexpert.encoders.base import Encoder
from mmexpert.encoders.pooling import masked_mean
from mmexpert.encoders.sources import find_source
from mmexpert.encoders.tokenizer import TextTokenizer, scratch_tokenizer
from mmexpert.types import ConfigError, Encoding


_WORD_SPREAD = 0.3


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

    def forward(self, text: dict[str, Tensor]) -> Encoding:
        """text {input_ids, attention_mask} int64 [B, M] -> features [B, D], sequence [B, M, D], mask [B, M]."""
        output = self.model(input_ids=text["input_ids"], attention_mask=text["attention_mask"])
        tokens, real = output.last_hidden_state, text["attention_mask"].bool()
        sequence = self.projection(tokens)
        words = real & ~torch.isin(text["input_ids"], self.special_ids)
        return Encoding(self.projection(self._pool(output, tokens, real)), sequence.where(words[..., None], 0), words)

    def _pool(self, output: Any, tokens: Tensor, real: Tensor) -> Tensor:
        if self.pooling == "mean":
            return masked_mean(tokens, real)
        if self.pooling == "max":
            return tokens.masked_fill(~real[..., None], -torch.inf).amax(1)
        return tokens[:, 0] if self.pooling == "cls" else output.pooler_output


class ScratchText(TextEncoder):
    """BERT from random weights over a vocabulary built from the training captions; masked mean."""

    def __init__(
        self, tokenizer: TextTokenizer, dim: int, lr_scale: float, bert: dict[str, Any], vocab_size: int, max_length: int
    ) -> None:
        from transformers import BertConfig, BertModel

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
        )
        model = BertModel(config, add_pooling_layer=False)
        # BERT's own 0.02 lets position and type outweigh the words: all texts then start at a cosine of 0.96, and the loss stands still
        # for the first 100 steps
        nn.init.normal_(model.embeddings.word_embeddings.weight, std=_WORD_SPREAD)
        super().__init__(model, dim, lr_scale, "mean", tokenizer.special_ids)

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
        from transformers import AutoConfig, AutoModel

        source = find_source(name)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        longest = getattr(config, "max_position_embeddings", max_length)
        if max_length > longest:
            raise ConfigError(f"encoder.text.max_length={max_length}: {name} has {longest} positions")
        model = AutoModel.from_pretrained(source, config=config, trust_remote_code=False)
        if pooling == "pooler" and getattr(model, "pooler", None) is None:
            raise ConfigError(f"encoder.text.pooling=pooler: {name} has no pooler; choose mean, which such models are trained for")
        super().__init__(model, dim, lr_scale, pooling, tokenizer.special_ids)
        self.freeze_backbone = freeze_backbone
        if pooling != "pooler" and getattr(model, "pooler", None) is not None:
            model.pooler = None  # parameters that get no gradient break DDP
        if freeze_backbone:
            model.requires_grad_(False)
        elif train_layers != "all":
            _train_last(model, int(train_layers))

    def save_backbone(self, folder: Path) -> None:
        """Writes configuration and weights of the model, so that a saved model needs no hub."""
        self.model.save_pretrained(str(folder))

    def frozen_modules(self) -> list[nn.Module]:
        """The whole model where it is frozen."""
        return [self.model] if self.freeze_backbone else []

    @staticmethod
    def tokenizer_for(texts: list[str], node: dict[str, Any]) -> TextTokenizer:
        """The tokenizer that lies beside the model; texts are not used."""
        from transformers import AutoTokenizer

        return TextTokenizer(AutoTokenizer.from_pretrained(find_source(node["name"]), trust_remote_code=False), node["max_length"])


def _train_last(model: nn.Module, count: int) -> None:
    """Freezes all but the last `count` layers of the encoder stack."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not stacks or not 0 < count <= len(stacks[0]):
        raise ConfigError(f"encoder.text.train_layers={count}: write all, or 1 to {len(stacks[0]) if stacks else 0}")
    model.requires_grad_(False)
    for layer in stacks[0][-count:]:
        layer.requires_grad_(True)
