"""The five similarity heads against the same definitions as a loop over pairs and as tensors with autograd.

Forward and backward, D 256, ragged masks, interleaved in one run; values and gradients are checked first.

    python scripts/bench_similarity.py                       # one thread, CPU clock
    python scripts/bench_similarity.py --threads 2 --clock wall
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from measure import Table, agree, arguments, peak_bytes, seconds
from torch import Tensor
from torch.nn import functional as F

from mmexpert.similarity.attention import AttentionHead
from mmexpert.similarity.base import Head, Similarity
from mmexpert.similarity.combined import Combined
from mmexpert.similarity.global_ import MeanHead
from mmexpert.similarity.local import WindowHead
from mmexpert.similarity.temporal import TemporalHead
from mmexpert.types import Encoding

D, GAMMA, TAU = 256, 0.1, 0.1
WEIGHTS = {"global": 0.5, "local": 0.25, "attention": 0.15, "temporal": 0.1}
BLOCK_BYTES = 2**26  # conf/similarity/*.yaml


def pair_global(q: Tensor, t: Tensor) -> Tensor:
    """One pair: q [L, D], t [M, D] unit tokens."""
    return F.normalize(q.mean(0), dim=0) @ F.normalize(t.mean(0), dim=0)


def pair_windows(x: Tensor, size: int, stride: int) -> Tensor:
    """Window means that count, of length 1."""
    kept = [x[start : start + size] for start in range(0, len(x), stride)]
    return torch.stack([F.normalize(w.mean(0), dim=0) for w in kept if len(w) >= min(len(x), (size + 1) // 2)])


def pair_local(q: Tensor, t: Tensor) -> Tensor:
    """Best partners of windows."""
    table = pair_windows(q, 4, 2) @ pair_windows(t, 3, 1).T
    return (table.amax(1).mean() + table.amax(0).mean()) / 2


def pair_attention(q: Tensor, t: Tensor) -> Tensor:
    """Cosine of each token with what it attends to."""
    table = q @ t.T
    there = (F.normalize((table / TAU).softmax(1) @ t, dim=1) * q).sum(1).mean()
    back = (F.normalize((table.T / TAU).softmax(1) @ q, dim=1) * t).sum(1).mean()
    return (there + back) / 2


def log_paths(steps: int, tokens: int) -> float:
    """log of the number of monotone paths."""
    return math.lgamma(steps + tokens) - math.lgamma(steps + 1) - math.lgamma(tokens)


def pair_temporal(q: Tensor, t: Tensor) -> Tensor:
    """Alignment of one pair, in logarithms."""

    def one_way(table: Tensor) -> Tensor:
        here = torch.cat([table.new_zeros(1), table.new_full((table.shape[1] - 1,), -1e5)])
        for row in table.unbind(0):
            here = row / GAMMA + here.logcumsumexp(0)
        return GAMMA * (here.logsumexp(0) - log_paths(*table.shape)) / table.shape[0]

    table = q @ t.T
    return (one_way(table) + one_way(table.T)) / 2


PAIRS = {"global": pair_global, "local": pair_local, "attention": pair_attention, "temporal": pair_temporal}


def looped(pair: Callable[[Tensor, Tensor], Tensor], q: Tensor, t: Tensor, q_lengths: list[int], t_lengths: list[int]) -> Tensor:
    """The definition, pair by pair."""
    queries = [x[:n] for x, n in zip(q, q_lengths, strict=True)]
    targets = [y[:m] for y, m in zip(t, t_lengths, strict=True)]
    return torch.stack([torch.stack([pair(x, y) for y in targets]) for x in queries])


def mean_of(values: Tensor, mask: Tensor) -> Tensor:
    """Masked mean over the last axis."""
    return torch.where(mask, values, 0).sum(-1) / mask.sum(-1)


def vector_global(q: Tensor, t: Tensor, q_mask: Tensor, t_mask: Tensor) -> Tensor:
    """Means and one product."""
    mean = [F.normalize((x * m[..., None]).sum(1) / m.sum(1, keepdim=True), dim=1) for x, m in ((q, q_mask), (t, t_mask))]
    return mean[0] @ mean[1].T


def vector_local(q: Tensor, t: Tensor, q_mask: Tensor, t_mask: Tensor) -> Tensor:
    """similarity.md 3.2 as tensors: windows, all products, two maxima."""

    def windows(x: Tensor, mask: Tensor, size: int, stride: int) -> tuple[Tensor, Tensor]:
        sums = F.avg_pool1d(F.pad((x * mask[..., None]).mT, (0, size - 1)), size, stride)
        held = F.avg_pool1d(F.pad(mask.float(), (0, size - 1))[:, None], size, stride)[:, 0]
        counts = (held * size).round() >= mask.sum(1).clamp(max=(size + 1) // 2)[:, None]
        return F.normalize((sums / held.clamp(min=1e-6)[:, None]).mT, dim=-1, eps=1e-6), counts

    (a, a_counts), (b, b_counts) = windows(q, q_mask, 4, 2), windows(t, t_mask, 3, 1)
    table = (a.flatten(0, 1) @ b.flatten(0, 1).T).view(len(a), a.shape[1], len(b), -1).transpose(1, 2)
    real = a_counts[:, None, :, None] & b_counts[None, :, None]
    table = table.masked_fill(~real, -2.0)
    return (mean_of(table.amax(3), a_counts[:, None]) + mean_of(table.amax(2), b_counts)) / 2


def vector_attention(q: Tensor, t: Tensor, q_mask: Tensor, t_mask: Tensor) -> Tensor:
    """Attended vectors of all pairs by einsum: B^2 L D floats."""

    def one_way(q: Tensor, t: Tensor, q_mask: Tensor, t_mask: Tensor) -> Tensor:
        table = torch.einsum("ild,jmd->ijlm", q, t).masked_fill(~t_mask[None, :, None], -1e4)
        seen = torch.einsum("ijlm,jmd->ijld", (table / TAU).softmax(-1), t)
        return mean_of((F.normalize(seen, dim=-1, eps=1e-6) * q[:, None]).sum(-1), q_mask[:, None])

    return (one_way(q, t, q_mask, t_mask) + one_way(t, q, t_mask, q_mask).T) / 2


def vector_temporal(q: Tensor, t: Tensor, q_mask: Tensor, t_mask: Tensor) -> Tensor:
    """similarity.md 3.4 as tensors: the recursion in logarithms under autograd, rows by unbind."""

    def one_way(table: Tensor, steps: Tensor, tokens: Tensor) -> Tensor:
        real = torch.arange(table.shape[3]) < tokens[:, None]
        table = table.masked_fill(~real[None, :, None], -1e4)
        here = torch.full_like(table[:, :, 0], -1e5)
        here[..., 0] = 0
        for step, row in enumerate(table.unbind(2)):
            here = torch.where((step < steps)[:, None, None], row / GAMMA + here.logcumsumexp(-1), here)
        n, m = steps.double()[:, None], tokens.double()
        paths = torch.lgamma(n + m) - torch.lgamma(n + 1) - torch.lgamma(m)
        return (GAMMA * (here.logsumexp(-1) - paths.float()) / steps[:, None]).float()

    table = (q.flatten(0, 1) @ t.flatten(0, 1).T).view(len(q), q.shape[1], len(t), -1).transpose(1, 2)
    lengths = q_mask.sum(1), t_mask.sum(1)
    return (one_way(table, *lengths) + one_way(table.permute(1, 0, 3, 2), *lengths[::-1]).T) / 2


VECTORS = {"global": vector_global, "local": vector_local, "attention": vector_attention, "temporal": vector_temporal}


def heads() -> dict[str, Head]:
    """Ours, without the D x D maps, which all forms would share."""
    return {
        "global": MeanHead(D, False),
        "local": WindowHead(4, 2, 3, 1),
        "attention": AttentionHead(TAU, "both"),
        "temporal": TemporalHead("monotone", GAMMA, "free", "both"),
    }


class Case:
    """B queries of up to L tokens against B targets of up to M."""

    def __init__(self, pairs: int, query: int, target: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.lengths = [torch.randint(n // 2, n + 1, (pairs,), generator=generator) for n in (query, target)]
        for lengths, longest in zip(self.lengths, (query, target), strict=True):
            lengths[0] = longest
        self.masks = [torch.arange(n) < lengths[:, None] for n, lengths in zip((query, target), self.lengths, strict=True)]
        shapes = [(pairs, n, D) for n in (query, target)]
        tokens = [torch.randn(shape, generator=generator) for shape in shapes]
        self.sides = [(x * mask[..., None]).requires_grad_() for x, mask in zip(tokens, self.masks, strict=True)]
        self.weights = torch.randn(pairs, pairs, generator=generator)

    def run(self, scores: Tensor) -> list[Tensor]:
        """Scores and gradients of both sides of a weighted sum."""
        return [scores.detach(), *torch.autograd.grad((scores * self.weights).sum(), self.sides)]

    def loop(self, name: str) -> list[Tensor]:
        """The definition in loops."""
        return self.run(looped(PAIRS[name], *self.tokens(name), *(lengths.tolist() for lengths in self.lengths)))

    def vector(self, name: str) -> list[Tensor]:
        """The definition as tensors; combined: the four summed."""
        if name != "combined":
            return self.run(VECTORS[name](*self.tokens(name), *self.masks))
        return self.run(sum(weight * VECTORS[head](*self.tokens(head), *self.masks) for head, weight in WEIGHTS.items()))

    def tokens(self, name: str) -> list[Tensor]:
        """Both sides as a head's definition takes them: of length 1, but for global."""
        return self.sides if name == "global" else [F.normalize(x, dim=-1, eps=1e-6) for x in self.sides]

    def ours(self, name: str) -> list[Tensor]:
        """The package's head, in its blocks."""
        every = heads()
        if name == "combined":
            module = Combined(every["local"], every["attention"], every["temporal"], WEIGHTS, False, D, False, 0, BLOCK_BYTES)
        else:
            module = Similarity({name: every[name]}, D, False, 0, BLOCK_BYTES)
        sides = [Encoding(x[:, 0], x, mask) for x, mask in zip(self.sides, self.masks, strict=True)]
        return self.run(module(*sides))


def main() -> None:
    """Prints the table."""
    given = arguments(__doc__)
    names = [*PAIRS, "combined"]
    small = Case(16, 31, 32)
    for name in names:
        candidates = {"vectorised": small.vector(name), "ours": small.ours(name)} | ({"loop": small.loop(name)} if name in PAIRS else {})
        agree(f"{name}, B 16", candidates, 2e-4)
    print("values and gradients agree")
    table = Table(given.out)
    least = {"global": 100.0, "local": 30.0, "attention": 10.0, "temporal": 60.0}
    beside = {"local": (1.2, 1 / 2), "attention": (4.0, 1 / 20), "temporal": (1.8, 1 / 2), "combined": (1.5, 1 / 4)}
    case, size = (small, "B 16") if given.quick else (Case(64, 31, 32), "B 64")
    for name in names:
        ours, peer, loop = (partial(form, name) for form in (case.ours, case.vector, case.loop))
        time = seconds({"ours": ours, "peer": peer}, given.rounds, given.clock)
        goal = (None, None) if given.quick else beside.get(name, (None, None))
        table.row(f"{name} against autograd, {size}", time["ours"], time["peer"], (peak_bytes(ours), peak_bytes(peer)), *goal)
        if name in PAIRS:
            time = seconds({"ours": ours, "peer": loop}, min(3, given.rounds), given.clock)  # up to 20 s a round
            table.row(f"{name} against the loop, {size}", time["ours"], time["peer"], None, None if given.quick else least[name], None)
    if not given.quick:
        for name in names:
            ours = partial(Case(64, 248, 32).ours, name)
            print(f"{name}, B 64 L 248 M 32: {seconds({'': ours}, 1, given.clock)['']:.2f} s, {peak_bytes(ours) / 1e6:.0f} MB")
    table.finish()


if __name__ == "__main__":
    main()
