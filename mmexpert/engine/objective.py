"""Model, similarity and loss in one module, so that whatever wraps or saves it sees every learned number."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from mmexpert.losses.gather import gather, processes, sum_over_ranks
from mmexpert.similarity.base import Similarity
from mmexpert.types import Batch, ConfigError, Encoding, Pair

REPORT_ROWS = 1024


class Objective(nn.Module):
    """loss_total = the loss's terms by their weights + sequence_weight * loss_seq.

    model: Batch -> Pair. loss: has forward, from_scores, class_loss, term_weights, clamp_. similarity: (Encoding, Encoding) ->
    scores [Bq, Bt] in [-1, 1], or None; sequence_loss: a loss of its own for those scores, or None. sequence_ramp_epochs: in training
    the weight grows linearly from 0 over so many epochs, a little with each optimizer step.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        similarity: nn.Module | None,
        sequence_loss: nn.Module | None,
        sequence_weight: float,
        sequence_ramp_epochs: float,
    ) -> None:
        super().__init__()
        if (similarity is None) != (sequence_loss is None):
            raise ConfigError("a similarity and its sequence_loss come together")
        if similarity is not None and not getattr(model, "gives_tokens", True):
            raise ConfigError("a similarity compares token sequences, and a composed query is one vector: choose similarity=none")
        if model.head is not None and not loss.term_weights.get("loss_class", 0) > 0:
            model.head.without_loss()
        self.model, self.loss, self.similarity, self.sequence_loss = model, loss, similarity, sequence_loss
        self.sequence_weight, self.sequence_ramp_epochs = sequence_weight, sequence_ramp_epochs
        self._training_ramp = 1.0

    @property
    def ramp(self) -> float:
        """Share of the sequence term's weight, 0..1: in training what at_epoch has set, elsewhere 1.

        So validation and `mmexpert.evaluate` count the whole term: valid/loss_total is one quantity in every epoch, and a checkpoint is
        not the best because its term weighed less.
        """
        return self._training_ramp if self.training else 1.0

    def at_epoch(self, epoch: float) -> None:
        """Sets the ramp of the optimizer step that comes; epoch counts those trained so far, with their fraction."""
        if self.sequence_ramp_epochs:
            self._training_ramp = min(1.0, epoch / self.sequence_ramp_epochs)

    def forward(self, batch: Batch, pull: Callable[[Pair], Tensor] | None = None) -> tuple[dict[str, Tensor], Pair] | Tensor:
        """terms() of the model's pair; with pull (engine/accumulate.py) what it makes of the pair instead."""
        pair = self.model(batch)
        return self.terms(pair, batch) if pull is None else pull(pair)

    def terms(self, pair: Pair, batch: Batch) -> tuple[dict[str, Tensor], Pair]:
        """The loss terms by their logged names, loss_total among them, all scalars; and the pair that the model made of the batch."""
        keys = batch["positive_key"]
        terms = self.loss(pair.query.features, pair.target.features, keys, pair.target_key)
        terms = terms | self.loss.class_loss(pair, batch)
        total = self._weighted(terms)
        report = in_batch_report(pair, keys)
        if self.similarity is not None:
            terms["loss_seq"], gaps = self._sequence_term(pair, keys)
            total, report = total + self.ramp * self.sequence_weight * terms["loss_seq"], report | gaps
        with torch.no_grad():
            if pair.class_logits is not None and "label" in batch:
                report["acc"] = (pair.class_logits.argmax(1) == batch["label"]).float().mean()
        return self.named(terms) | report | {"loss_total": total}, pair

    def _sequence_term(self, pair: Pair, keys: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """loss_seq over the pairs of all ranks, and the score gap of each head over the same.

        Only target tokens travel (the shorter side), and sums over the columns of the scores: each rank scores its own queries. The mean
        over ranks is the loss, and has the gradient, of one process.
        """
        target_key = gather(keys if pair.target_key is None else pair.target_key)
        target = gather_tokens(pair.target)
        if isinstance(self.similarity, Similarity):
            heads = self.similarity.head_scores(pair.query, target)
            rows = self.similarity.mix(heads)
        else:  # a part of the user's own
            rows = self.similarity(pair.query, target)
            heads = {"sequence": rows}
        positives = keys[:, None] == target_key
        loss = self.sequence_loss.from_row_block(rows, positives)["loss_clip"]
        gaps = score_gaps(torch.stack([_sums(scores.detach(), positives) for scores in heads.values()]))
        return loss, {f"score_gap_{name}": gap for name, gap in zip(heads, gaps, strict=True)}

    def score_losses(self, scores: Tensor, positives: Tensor) -> dict[str, Tensor]:
        """The contrastive terms of given scores [Bq, Bt]: evaluation has gathered features and needs no other rank."""
        terms = self.loss.from_scores(scores, positives)
        return self.named(terms) | {"loss_total": self._weighted(terms)}

    def named(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """The terms with the directions named by the model's roles: loss_query_to_target -> loss_radar_to_text."""
        query, target = self.model.query, self.model.target
        directions = {"loss_query_to_target": f"loss_{query}_to_{target}", "loss_target_to_query": f"loss_{target}_to_{query}"}
        return {directions.get(name, name): value for name, value in terms.items()}

    def scales(self) -> dict[str, Tensor]:
        """Learned scale and bias of each term, as logged: logit_scale = exp of the parameter."""
        holders = {"": self.loss, "_seq": self.sequence_loss, "_class": getattr(self.model, "head", None)}
        found = {}
        for suffix, holder in holders.items():
            if (scale := getattr(holder, "logit_scale", None)) is not None:
                found[f"logit_scale{suffix}"] = scale.detach().exp()
            if (bias := getattr(holder, "logit_bias", None)) is not None:
                found[f"logit_bias{suffix}"] = bias.detach()
        weights = self.similarity.weights() if isinstance(self.similarity, Similarity) else {}
        return found | {f"similarity_weight_{name}": weight.detach() for name, weight in weights.items()}

    def clamp_(self) -> None:
        """Keeps every scale in its range; called after the optimizer step."""
        for part in (self.loss, self.sequence_loss, self.model):
            if part is not None:
                part.clamp_()

    def train(self, mode: bool = True) -> "Objective":
        """Training mode for all but frozen towers, which stay in evaluation mode."""
        super().train(mode)
        for encoder in self.model.encoders.values():
            for frozen in encoder.frozen_modules():
                frozen.eval()
        return self

    def _weighted(self, terms: dict[str, Tensor]) -> Tensor:
        return sum(weight * terms[name] for name, weight in self.loss.term_weights.items() if name in terms)


@torch.no_grad()
def in_batch_report(pair: Pair, keys: Tensor) -> dict[str, Tensor]:
    """score_gap of the pooled cosines; in_batch_recall_1: share of own rows whose best target is a positive. Targets are all ranks'."""
    target_keys = gather(keys if pair.target_key is None else pair.target_key)
    target = Encoding(gather(pair.target.features))
    sums, hits = [], []
    for start in range(0, len(keys), REPORT_ROWS):  # never the whole matrix of a large batch
        rows = slice(start, start + REPORT_ROWS)
        scores = cosine(Encoding(pair.query.features[rows]), target)
        positives = keys[rows, None] == target_keys
        sums.append(_sums(scores, positives))
        hits.append(positives.gather(1, scores.argmax(1, keepdim=True)).float())
    (gap,) = score_gaps(torch.stack(sums).sum(0, keepdim=True))
    return {"score_gap": gap, "in_batch_recall_1": torch.cat(hits).mean()}


def score_gaps(sums: Tensor) -> Tensor:
    """[H]: mean score of positives minus that of negatives (0 where there are none), from each rank's _sums [H, 4] of its rows."""
    of_positives, positive_count, of_negatives, negative_count = sum_over_ranks(sums).T
    return of_positives / positive_count - of_negatives / negative_count.clamp(min=1)


def _sums(scores: Tensor, positives: Tensor) -> Tensor:
    """[4]: sum of positives' scores, their number, sum of negatives' scores, their number."""
    negatives, counts = ~positives, positives.sum().to(scores.dtype)
    return torch.stack([(scores * positives).sum(), counts, (scores * negatives).sum(), negatives.sum().to(scores.dtype)])


def gather_tokens(encoding: Encoding) -> Encoding:
    """The encodings of all ranks, sequences padded to the longest of them; the same object in one process."""
    if processes() == 1 or encoding.sequence is None:
        return encoding
    longest = torch.tensor(encoding.sequence.shape[1], device=encoding.sequence.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    pads = int(longest) - encoding.sequence.shape[1]
    mask = torch.ones(encoding.sequence.shape[:2], dtype=torch.bool, device=longest.device) if encoding.mask is None else encoding.mask
    sequence, mask = F.pad(encoding.sequence, (0, 0, 0, pads)), F.pad(mask, (0, pads))
    return Encoding(encoding.features, gather(sequence), gather(mask.long()).bool())


def cosine(query: Encoding, target: Encoding) -> Tensor:
    """Cosine scores [Bq, Bt] of pooled features, fp32 at least."""
    with torch.autocast(query.features.device.type, enabled=False):
        wide = torch.promote_types(query.features.dtype, torch.float32)
        return F.normalize(query.features.to(wide), dim=1) @ F.normalize(target.features.to(wide), dim=1).T
