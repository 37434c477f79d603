"""The contrastive losses against the usual code: two products and two cross-entropies (clip), one matrix of logsigmoids (siglip).

Forward and backward from given features, D 256, interleaved in one run; values and gradients are checked first.

    python scripts/bench_losses.py                           # one thread, CPU clock
    python scripts/bench_losses.py --threads 2 --clock wall
    python scripts/bench_losses.py --quick
"""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from measure import Table, agree, arguments, peak_bytes, seconds
from torch import Tensor
from torch.nn import functional as F

from mmexpert.losses.base import Loss
from mmexpert.losses.clip import ClipLoss
from mmexpert.losses.siglip import SigLipLoss
from mmexpert.losses.tiling import Tiling

D = 256
BIAS = -10.0
Peer = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def usual_clip(q: Tensor, t: Tensor, scale: Tensor, keys: Tensor) -> Tensor:
    """open_clip's ClipLoss as it stands in its loss.py: every key is taken for unique."""
    own = torch.arange(len(q))
    return (F.cross_entropy(scale * q @ t.T, own) + F.cross_entropy(scale * t @ q.T, own)) / 2


def masked_clip(q: Tensor, t: Tensor, scale: Tensor, keys: Tensor) -> Tensor:
    """The plain formula with a mask of positives."""
    logits, positives = scale * q @ t.T, keys[:, None] == keys
    count = positives.sum(1)
    there = -(logits.log_softmax(1) * positives).sum(1) / count
    back = -(logits.T.log_softmax(1) * positives).sum(1) / count
    return (there.mean() + back.mean()) / 2


def usual_siglip(q: Tensor, t: Tensor, scale: Tensor, keys: Tensor) -> Tensor:
    """open_clip's SigLipLoss as it stands in its loss.py: labels of +-1, unique keys."""
    logits = scale * q @ t.T + BIAS
    labels = 2 * torch.eye(len(q)) - 1
    return -F.logsigmoid(labels * logits).sum() / len(q)


def chunked_siglip(q: Tensor, t: Tensor, scale: Tensor, keys: Tensor) -> Tensor:
    """The same in chunks of 512 rows under autograd, each made again in backward."""

    def part(rows: Tensor, start: Tensor) -> Tensor:
        logits = scale * rows @ t.T + BIAS
        labels = -torch.ones_like(logits)
        labels.diagonal(int(start)).fill_(1.0)
        return -F.logsigmoid(labels * logits).sum()

    starts = torch.arange(0, len(q), 512)
    parts = [torch.utils.checkpoint.checkpoint(part, q[i : i + 512], i, use_reentrant=False) for i in starts]
    return torch.stack(parts).sum() / len(q)


def installed(name: str, plain: Peer) -> Peer:
    """open_clip_torch's own loss where it is installed (pip install -e .[bench]), else the same formula written here."""
    if importlib.util.find_spec("open_clip") is None:
        return plain
    import open_clip.loss

    module = getattr(open_clip.loss, name)()
    if name == "ClipLoss":
        return lambda q, t, scale, keys: module(q, t, scale)
    return lambda q, t, scale, keys: module(q, t, scale, torch.tensor(BIAS))


@dataclass(frozen=True)
class Case:
    """A row of the table. noise: of the queries about their targets. Goals: least peer / ours in time, most ours / peer in memory."""

    loss: str
    rows: int
    form: str
    scale: float
    repeated: bool
    peer: Peer
    least: float | None
    most: float | None

    def name(self, peer: str) -> str:
        """As printed."""
        keys = ", keys" if self.repeated else ""
        return f"{self.loss} B {self.rows}{keys}, scale {self.scale:g}, {self.form}, against {peer}"

    def sides(self) -> tuple[list[Tensor], Tensor]:
        """Features [B, D] of both sides and keys [B]."""
        generator = torch.Generator().manual_seed(0)
        target = torch.randn(self.rows, D, generator=generator)
        query = target + 4 * torch.randn(self.rows, D, generator=generator)
        rows = torch.arange(self.rows)
        return [query.requires_grad_(), target.requires_grad_()], rows // 3 if self.repeated else rows

    def works(self) -> dict[str, Callable[[], list[Tensor]]]:
        """ours and peer: value and gradients of both sides and of the scale's logarithm."""
        sides, keys = self.sides()
        loss: Loss = ClipLoss(0.07, True, "out", "both") if self.loss == "clip" else SigLipLoss(0.1, True, BIAS, 1.0)
        loss.logit_scale.data.fill_(math.log(self.scale))
        loss.tile(Tiling(self.form))

        def differentiated(value: Tensor) -> list[Tensor]:
            return [value.detach(), *torch.autograd.grad(value, [*sides, loss.logit_scale])]

        def peer() -> list[Tensor]:
            query, target = (F.normalize(side, dim=1) for side in sides)
            return differentiated(self.peer(query, target, loss.logit_scale.exp(), keys))

        return {"ours": lambda: differentiated(loss(*sides, keys)["loss_clip"]), "peer": peer}


def cases(quick: bool) -> list[Case]:
    """Goals of the specification (performance.md section 2, rows 1 to 8); keys are unique where the peer knows no others."""
    clip, siglip = installed("ClipLoss", usual_clip), installed("SigLipLoss", usual_siglip)
    rows = [
        *(Case("clip", rows, "auto", 14.3, False, clip, 1.0, None) for rows in (64, 256, 512, 1024, 2048)),
        Case("clip", 4096, "store", 14.3, False, clip, 2.0, 1 / 2.5),
        Case("clip", 4096, "recompute", 14.3, False, clip, 2.0, 1 / 8),
        Case("clip", 4096, "store", 100, False, clip, 1.7, None),
        Case("clip", 4096, "store", 14.3, True, masked_clip, 2.0, 1 / 3),
        Case("siglip", 4096, "auto", 14.3, False, siglip, 1.8, 1 / 7),
        Case("siglip", 4096, "auto", 14.3, False, chunked_siglip, 1.15, 1 / 2),
    ]
    large = [
        Case("clip", 8192, "recompute", 14.3, False, clip, 2.0, 1 / 18),
        Case("clip", 8192, "recompute", 100, False, clip, 1.7, None),
        Case("siglip", 8192, "auto", 14.3, False, siglip, 2.0, 1 / 14),
    ]
    return rows if quick else rows + large


def main() -> None:
    """Prints the table."""
    given = arguments(__doc__)
    peer = "open_clip_torch" if importlib.util.find_spec("open_clip") else "its formula written here (peer absent: pip install -e .[bench])"
    print(f"clip and siglip against {peer}")
    table = Table(given.out)
    for case in cases(given.quick):
        works = case.works()
        title = case.name(
            "the masked formula" if case.peer is masked_clip else "chunks" if case.peer is chunked_siglip else "the usual code"
        )
        agree(title, {name: work() for name, work in works.items()}, 2e-4)
        rounds = given.rounds if case.rows >= 1024 else 10 * given.rounds
        time = seconds(works, rounds, given.clock)
        table.row(title, time["ours"], time["peer"], (peak_bytes(works["ours"]), peak_bytes(works["peer"])), case.least, case.most)
    table.finish()


if __name__ == "__main__":
    main()
