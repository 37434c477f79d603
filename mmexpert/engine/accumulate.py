"""How the micro-batches of one optimizer step go backward: each on its own, or all as one contrastive batch (GradCache, arXiv 2101.06983).

Shapes: A micro-batches of B rows, G = A B rows of a step on this rank, L query and M target tokens, D width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from mmexpert.engine import random_state
from mmexpert.engine.objective import Objective
from mmexpert.types import Batch, ConfigError, Encoding, Pair

Losses = dict[str, Tensor]


class Accumulation(Protocol):
    """Goes backward through a window and yields (loss terms, ids of their rows) to be logged: once, or once a micro-batch."""

    def __call__(self, objective: nn.Module, module: Objective, window: Sequence[Batch]) -> Iterator[tuple[Losses, Tensor]]:
        """objective: as wrapped for several processes; module: without the wrapping; window: micro-batches of one step."""


class Gradients:
    """Each micro-batch is a contrastive batch of its own: accumulation adds no negatives."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    def __call__(self, objective: nn.Module, module: Objective, window: Sequence[Batch]) -> Iterator[tuple[Losses, Tensor]]:
        """As Accumulation: one row of losses a micro-batch."""
        for batch in window:
            with self.accelerator.accumulate(objective):  # gradients travel in the last one only
                losses, _ = objective(batch)  # never .forward: DDP's hooks hang on the call
                self.accelerator.backward(losses["loss_total"])
            yield losses, batch["id"]


class Features:
    """All rows of a step are one contrastive batch; its gradient is that of the undivided batch, in the memory of one micro-batch.

    Each micro-batch is encoded twice: without gradient, to have the features that the loss needs, and again under the same random
    numbers to bring the loss's gradient home. 4/3 of the time. The first window checks that both times gave the same features.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.checked = False

    def __call__(self, objective: nn.Module, module: Objective, window: Sequence[Batch]) -> Iterator[tuple[Losses, Tensor]]:
        """As Accumulation: one row of losses a step."""
        states, pairs, ids = [], [], []
        for batch in window:
            ids.append(batch["id"])
            states.append(random_state.capture())
            with torch.no_grad(), self.accelerator.autocast():  # one context each: autocast would keep weights without gradient
                pairs.append(_detached(module.model(batch)))
        losses, pulls = self._loss(module, pairs, window)
        after = random_state.capture()
        for batch, state, pull in zip(window, states, pulls, strict=True):
            random_state.restore(state)
            with self.accelerator.accumulate(objective):
                surrogate = objective(batch, pull)
                if surrogate.requires_grad:
                    surrogate.backward()  # the loss was scaled (fp16) when its gradients were made: neither again nor over A
        random_state.restore(after)
        self.checked = True
        yield losses, torch.cat(ids)

    def _loss(self, module: Objective, pairs: list[Pair], window: Sequence[Batch]) -> tuple[Losses, list["Pull"]]:
        """The loss of all rows at once, and what brings its gradient to each micro-batch."""
        with torch.enable_grad(), self.accelerator.autocast():
            losses, _ = module.terms(joined_pairs(pairs), joined_batches(window, module.loss.needs))
        total, scaler = losses["loss_total"], self.accelerator.scaler
        leaves = [leaf for pair in pairs for leaf in _tensors(pair).values()]
        parts = [part for part in (module.loss, module.similarity, module.sequence_loss) if part is not None]
        learned = [p for part in parts for p in part.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(scaler.scale(total) if scaler else total, leaves + learned, allow_unused=True)
        of_leaf = dict(zip(map(id, leaves), gradients, strict=False))
        of_learned = [(p, g) for p, g in zip(learned, gradients[len(leaves) :], strict=True) if g is not None]
        pulls = []
        for number, pair in enumerate(pairs):
            named = {name: of_leaf[id(leaf)] for name, leaf in _tensors(pair).items()}
            last = number == len(pairs) - 1
            pulls.append(Pull(named, of_learned if last else [], None if self.checked else pair))
        return {name: value.detach() for name, value in losses.items()}, pulls


@dataclass
class Pull:
    """Turns a second encoding into a scalar whose gradient is the loss's: sum(features * their gradient) + ...

    gradients: by tensor of the pair. learned: parameters of loss and heads with theirs, in the last micro-batch alone, so that DDP
    reduces them with all others, once. first: the first encoding to compare with, or None.
    """

    gradients: dict[str, Tensor | None]
    learned: list[tuple[nn.Parameter, Tensor]] = field(default_factory=list)
    first: Pair | None = None

    def __call__(self, pair: Pair) -> Tensor:
        """Raises RuntimeError naming the side where the second encoding differs from the first."""
        tensors = _tensors(pair)
        if self.first is not None:
            _compare(_tensors(self.first), tensors)
        with torch.autocast(pair.query.features.device.type, enabled=False):
            products = [_dot(tensors[name], gradient) for name, gradient in self.gradients.items() if gradient is not None]
            products += [_dot(parameter, gradient) for parameter, gradient in self.learned]
            return torch.stack(products).sum() if products else pair.query.features.new_zeros(())


def joined_pairs(pairs: Sequence[Pair]) -> Pair:
    """One pair of all rows; tokens padded to the longest. Further target rows, which stand behind a batch's own, stand behind them all."""
    rows = [len(pair.query.features) for pair in pairs]
    own = [_rows(pair.target, slice(0, n)) for pair, n in zip(pairs, rows, strict=True)]
    further = [_rows(pair.target, slice(n, None)) for pair, n in zip(pairs, rows, strict=True)]
    keys = [pair.target_key for pair in pairs]
    target_key = None
    if keys[0] is not None:
        target_key = torch.cat([k[:n] for k, n in zip(keys, rows, strict=True)] + [k[n:] for k, n in zip(keys, rows, strict=True)])
    logits = None if pairs[0].class_logits is None else torch.cat([pair.class_logits for pair in pairs])
    some = [encoding for encoding in further if len(encoding.features)]
    return Pair(joined_encodings([pair.query for pair in pairs]), joined_encodings(own + some), logits, target_key)


def joined_encodings(encodings: Sequence[Encoding]) -> Encoding:
    """One encoding of all rows, tokens padded to the longest."""
    features = torch.cat([encoding.features for encoding in encodings])
    if encodings[0].sequence is None:
        return Encoding(features)
    longest = max(encoding.sequence.shape[1] for encoding in encodings)
    pads = [longest - encoding.sequence.shape[1] for encoding in encodings]
    sequence = torch.cat([F.pad(e.sequence, (0, 0, 0, pad)) for e, pad in zip(encodings, pads, strict=True)])
    if all(e.mask is None for e in encodings) and not any(pads):
        return Encoding(features, sequence)
    masks = [e.sequence.new_ones(e.sequence.shape[:2], dtype=torch.bool) if e.mask is None else e.mask for e in encodings]
    return Encoding(features, sequence, torch.cat([F.pad(mask, (0, pad)) for mask, pad in zip(masks, pads, strict=True)]))


def joined_batches(window: Sequence[Batch], needs: Sequence[str]) -> Batch:
    """What the loss reads of a batch, of all micro-batches: keys, weights, and what the loss names; tokens padded to the longest."""
    wanted = dict.fromkeys(("positive_key", "weight", "label", *needs))
    parts = [{name: batch[name] for name in wanted if name in batch} for batch in window]  # once: each is expanded when it is taken
    return {name: _joined([part[name] for part in parts]) for name in parts[0]}


def refuse_batch_norm(objective: Objective) -> None:
    """Raises ConfigError naming a batch norm that would take a micro-batch's statistics: they are not those of the undivided batch."""
    objective.train()
    for name, layer in objective.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training:
            raise ConfigError(
                f"trainer.accumulate=features: {name} is a batch norm, whose statistics would be a micro-batch's; choose a tower without, "
                "freeze it, or take trainer.accumulate=gradients"
            )


def accumulation(kind: str, accelerator: Accelerator, objective: Objective) -> Accumulation:
    """gradients | features by name; ConfigError for others, and where features can not be exact."""
    if kind == "gradients":
        return Gradients(accelerator)
    if kind != "features":
        raise ConfigError(f"trainer.accumulate={kind}: choose gradients or features")
    refuse_batch_norm(objective)
    return Features(accelerator)


def _joined(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return {name: _joined([value[name] for value in values]) for name in values[0]}
    if values[0].ndim < 2:
        return torch.cat(values)
    longest = max(value.shape[1] for value in values)
    pad = [0, 0] * (values[0].ndim - 2)
    return torch.cat([F.pad(value, (*pad, 0, longest - value.shape[1])) for value in values])


def _rows(encoding: Encoding, rows: slice) -> Encoding:
    pick = lambda x: None if x is None else x[rows]  # noqa: E731
    return Encoding(encoding.features[rows], pick(encoding.sequence), pick(encoding.mask))


def _tensors(pair: Pair) -> dict[str, Tensor]:
    """The float tensors of a pair by name."""
    named = {
        "query features": pair.query.features,
        "query tokens": pair.query.sequence,
        "target features": pair.target.features,
        "target tokens": pair.target.sequence,
        "class logits": pair.class_logits,
    }
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def _detached(pair: Pair) -> Pair:
    """The pair as leaves of a graph yet to be made."""
    leaf = lambda x: None if x is None else x.detach().requires_grad_()  # noqa: E731
    query, target = (Encoding(leaf(side.features), leaf(side.sequence), side.mask) for side in (pair.query, pair.target))
    return Pair(query, target, leaf(pair.class_logits), pair.target_key)


def _dot(x: Tensor, gradient: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return (x.to(wide) * gradient.to(wide)).sum()


def _compare(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in first.items():
            difference = (tensor - second[name]).abs().max() / tensor.abs().max().clamp(min=1e-12)
            if not bool(difference <= 1e-5):
                raise RuntimeError(
                    f"trainer.accumulate=features: the {name} of a micro-batch differ by {float(difference):.1e} when encoded again; "
                    "a tower must give the same numbers for the same random state"
                )
