"""Contrastive loss plus a classifier of caption tokens on the query's own tokens: SuperCLIP of arXiv 2512.14480, without labels."""

import torch
from torch import Tensor, nn
from torch import distributed as dist

from mmexpert.losses.base import Loss, raised
from mmexpert.losses.clip import ClipLoss
from mmexpert.losses.gather import processes
from mmexpert.types import Batch, ConfigError, Pair, TokenCorpus


class TokenTerm(Loss):
    """loss_token alone: for `loss=composite`, beside a loss that contrasts.

    Target of row i over the vocabulary: y_c = w_c / sum over the tokens of its caption, w_c = log((N + 1) / (df_c + 1)) >= 0 (the
    paper's log(N / (1 + df)) is below 0 for a token that every caption has). loss_token = -sum_c y_c log softmax(x)_c with x =
    Linear(LayerNorm(mean of the query's tokens)). Rows without weight leave the mean; token_rows counts the others.

    dim: D. idf: corpus (counted over the training part) | online (counted as training goes) | none (w = 1). vocab: seen (tokens of the
    training part) | full. ignore_special: leave [CLS], [SEP], padding out.
    """

    needs = ("text",)

    def __init__(self, dim: int, token_weight: float, idf: str, vocab: str, ignore_special: bool) -> None:
        super().__init__(temperature=1.0, learn_scale=False)
        if idf not in ("corpus", "online", "none") or vocab not in ("seen", "full"):
            raise ConfigError(f"loss.idf={idf} is corpus, online or none; loss.vocab={vocab} is seen or full")
        if token_weight <= 0:
            raise ConfigError(f"loss.token_weight={token_weight}: above 0")
        self.dim, self.idf, self.vocab, self.ignore_special = dim, idf, vocab, ignore_special
        self.term_weights = {"loss_token": token_weight}
        self.head: nn.Module | None = None

    def see_corpus(self, corpus: TokenCorpus | None) -> None:
        """Makes the token head for a vocabulary. Raises ConfigError where there is no text."""
        if corpus is None:
            raise ConfigError("loss=superclip_token learns to name the tokens of a caption: it needs encoder/text")
        counts = torch.tensor(corpus.counts)
        used = counts > 0 if self.vocab == "seen" else torch.ones_like(counts, dtype=torch.bool)
        if self.ignore_special:
            used[list(corpus.special_ids)] = False
        place = torch.full((len(counts),), -1)
        place[used] = torch.arange(int(used.sum()))
        online = self.idf == "online"
        self.register_buffer("place", place)  # of each token id in the head's outputs, -1 = left out
        self.register_buffer("document_counts", torch.zeros(int(used.sum())) if online else counts[used].float())
        self.register_buffer("documents", torch.tensor(0.0 if online else float(corpus.documents)))
        self.head = nn.Sequential(nn.LayerNorm(self.dim), nn.Linear(self.dim, int(used.sum())))

    def forward(self, query: Tensor, target: Tensor, keys: Tensor, target_keys: Tensor | None = None) -> dict[str, Tensor]:
        """No contrastive term."""
        return {}

    def from_scores(self, scores: Tensor, positives: Tensor) -> dict[str, Tensor]:
        """No contrastive term."""
        return {}

    def class_loss(self, pair: Pair, batch: Batch) -> dict[str, Tensor]:
        """loss_token and token_rows from the captions' input_ids. Raises KeyError where the query has no tokens."""
        if pair.query.sequence is None:
            raise KeyError(
                "loss=superclip_token needs the query's token sequence, and its encoder returned none (a composed query is one vector): "
                "choose loss=clip"
            )
        if "text" not in batch:
            raise KeyError(f"batch has no 'text'; it holds {', '.join(sorted(batch))}. loss=superclip_token needs captions")
        with torch.autocast(pair.query.sequence.device.type, enabled=False):
            present = self._present(batch["text"]["input_ids"], batch["text"]["attention_mask"])
            if self.training and self.idf == "online":
                self._count(present)
            weight = present * self._inverse_frequency()
            total = weight.sum(1, keepdim=True)
            rows = total[:, 0] > 0
            logits = self.head(_mean(raised(pair.query.sequence), pair.query.mask))
            losses = -(weight / total.clamp(min=1e-12) * logits.log_softmax(1)).sum(1)
            count = rows.sum().to(losses.dtype)
            everywhere = count.clone()
            if processes() > 1:
                dist.all_reduce(everywhere)
            loss = torch.where(rows, losses, 0).sum() * processes() / everywhere.clamp(min=1)  # DDP takes the mean over ranks
            return {"loss_token": loss, "token_rows": count}

    def _present(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[B, V] 1 where a caption has a token."""
        places = self.place[ids].masked_fill(~mask.bool(), -1)
        spare = torch.zeros(len(ids), len(self.document_counts) + 1, device=ids.device)  # the last column takes what is left out
        return spare.scatter(1, torch.where(places < 0, len(self.document_counts), places), 1.0)[:, :-1]

    def _count(self, present: Tensor) -> None:
        new = torch.cat([present.sum(0), torch.tensor([float(len(present))], device=present.device)])
        if processes() > 1:
            dist.all_reduce(new)
        self.document_counts += new[:-1]
        self.documents += new[-1]

    def _inverse_frequency(self) -> Tensor:
        if self.idf == "none":
            return torch.ones_like(self.document_counts)
        return ((self.documents + 1) / (self.document_counts + 1)).log()


class SuperClipTokenLoss(ClipLoss):
    """loss_total = loss_clip + token_weight loss_token; the keys of both."""

    needs = ("text",)

    def __init__(
        self, temperature: float, learn_scale: bool, dim: int, token_weight: float, idf: str, vocab: str, ignore_special: bool
    ) -> None:
        super().__init__(temperature, learn_scale, form="out", directions="both")
        self.token = TokenTerm(dim, token_weight, idf, vocab, ignore_special)
        self.term_weights = {"loss_clip": 1.0} | self.token.term_weights

    def see_corpus(self, corpus: TokenCorpus | None) -> None:
        """The token head's vocabulary."""
        self.token.see_corpus(corpus)

    def class_loss(self, pair: Pair, batch: Batch) -> dict[str, Tensor]:
        """The token term."""
        return self.token.class_loss(pair, batch)

    def for_scores(self) -> ClipLoss:
        """The contrastive form alone."""
        return ClipLoss(self.temperature, self.logit_scale.requires_grad, self.form, self.directions)


def _mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Masked mean of [B, L, D]; what lies under a False may be anything."""
    if mask is None:
        return tokens.mean(1)
    return tokens.where(mask[..., None], torch.zeros((), dtype=tokens.dtype, device=tokens.device)).sum(1) / mask.sum(1, keepdim=True)
