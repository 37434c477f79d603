"""The training step of three view transformers (depth 4, width 192) and a BERT of 384 x 6, B 8, against timm's towers and foreach AdamW.

Both sides: dropout off, forward, contrastive loss, backward, clipping, AdamW. The towers' products are counted, not assumed equal: the
FLOPs of both are printed. Goals 15, 16 and 25 of the specification; 18 (host reads) is tests/engine/test_training_step.py.

    python scripts/bench_step.py [--quick] [--rounds 3] [--out FILE.json]
"""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from bench_losses import usual_clip
from measure import Table, arguments, seconds
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mmexpert import build
from mmexpert.command_line import composed
from mmexpert.data.views import VIEW_ROWS
from mmexpert.engine.accumulate import accumulation
from mmexpert.engine.objective import Objective
from mmexpert.types import Batch

B, T, M, D = 8, 496, 20, 256
MICRO_BATCHES = 2  # of B rows each
MATRIX = 1024  # side of the products whose rate goal 16 is a share of
OVERRIDES = (
    "encoder/radar=vit", "encoder.radar.tower.dropout=0", "encoder.radar.trunk.dropout=0", f"model.projection_dim={D}",
    "encoder.text.vocab_size=30000",
    "encoder.text.bert={width: 384, layers: 6, heads: 6, feedforward: 1536, dropout: 0.0}",
)  # fmt: skip


class TimmTower(nn.Module):
    """A view's tower with timm's transformer over the same patches; columns are pooled and projected as in the tower that it replaces."""

    def __init__(self, rows: int, replaced: nn.Module) -> None:
        from timm.models.vision_transformer import VisionTransformer

        super().__init__()
        made = {"in_chans": 1, "num_classes": 0, "embed_dim": 192, "depth": 4, "num_heads": 3, "class_token": False, "global_pool": ""}
        self.transformer = VisionTransformer(img_size=(rows, T), patch_size=(rows // 8, 16), **made)
        self.pool, self.out = replaced.pool, replaced.out

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, F, T] -> [B, W, D]."""
        columns = self.transformer(x[:, None]).unflatten(1, (8, -1)).transpose(1, 2)
        return self.out(self.pool(columns.flatten(0, 1), None).unflatten(0, (len(x), -1)))


class Peer(nn.Module):
    """The same model with timm's transformers, and the usual code of the loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        towers = model.encoders["radar"].towers
        for view in list(towers):
            towers[view] = TimmTower(VIEW_ROWS[view], towers[view])
        self.model, self.scale = model, nn.Parameter(torch.tensor(2.66))

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a batch."""
        pair = self.model(batch)
        query, target = F.normalize(pair.query.features, dim=1), F.normalize(pair.target.features, dim=1)
        return usual_clip(query, target, self.scale.exp(), batch["positive_key"])


def example(tokens: int, rows: int = B) -> Batch:
    """Random clips and captions of full length."""
    generator = torch.Generator().manual_seed(0)
    radar = {view: torch.rand(rows, bins, T, generator=generator) for view, bins in VIEW_ROWS.items()}
    ids = torch.randint(5, tokens, (rows, M), generator=generator)
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {"radar": radar | {"mask": torch.ones(rows, T, dtype=torch.bool)}, "text": text, "positive_key": torch.arange(rows)}


def stepping(module: nn.Module, loss: Callable[[Batch], Tensor], batch: Batch, fused: bool, half: bool) -> Callable[[], None]:
    """One optimizer step."""
    optimizer = torch.optim.AdamW(module.parameters(), 1e-5, fused=fused, foreach=not fused)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            value = loss(batch)
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def pieces(batch: Any, count: int) -> list[Any]:
    """A batch as so many micro-batches."""
    if isinstance(batch, Tensor):
        return list(batch.chunk(count))
    parts = {name: pieces(value, count) for name, value in batch.items()}
    return [{name: part[number] for name, part in parts.items()} for number in range(count)]


def backward(objective: Objective, batch: Batch, count: int) -> Callable[[], None]:
    """Gradients of one batch: at once, or exactly the same in micro-batches (trainer.accumulate=features)."""
    accelerator = Accelerator(cpu=True)
    way = accumulation("features" if count > 1 else "gradients", accelerator, objective)

    def work() -> None:
        for _ in way(objective, objective, pieces(batch, count)):
            objective.zero_grad(set_to_none=True)

    return work


def main() -> None:
    """Prints the table."""
    given = arguments(__doc__)
    cfg = composed(*OVERRIDES)
    words = [f"word{i} walks{i} past{i}" for i in range(9000)]  # 27,000 words: their embedding is what fused AdamW is for
    tokenizer = build.build_tokenizer(cfg, words)
    torch.manual_seed(0)
    models = [build.build_model(cfg, None, tokenizer) for _ in range(3)]
    objectives = [build.build_objective(cfg, model, tokenizer.corpus(words)).train() for model in models[:2]]
    peer, batch = Peer(models[2]).train(), example(200)
    works = {
        "fp32": stepping(objectives[0], lambda b: objectives[0](b)[0]["loss_total"], batch, True, False),
        "bf16": stepping(objectives[1], lambda b: objectives[1](b)[0]["loss_total"], batch, True, True),
        "peer": stepping(peer, peer, batch, False, False),
    }
    flops = {}
    for name in ("fp32", "peer"):
        with FlopCounterMode(display=False) as counter:
            works[name]()
        flops[name] = counter.get_total_flops()
    square = torch.randn(MATRIX, MATRIX)
    time = seconds(works | {"product": lambda: square @ square}, given.rounds, given.clock)
    count = sum(p.numel() for p in objectives[0].parameters()) / 1e6
    print(f"# {count:.1f} M parameters, {flops['fp32'] / 1e9:.1f} GFLOP a step; peer {flops['peer'] / 1e9:.1f} GFLOP")
    table = Table(given.out)
    table.row("step, fp32, against timm's towers and foreach AdamW", time["fp32"], time["peer"], None, 1.1, None)
    table.row("step, bf16, against the same in fp32", time["bf16"], time["peer"], None, 1.5, None)
    ideal = flops["fp32"] / (2 * MATRIX**3 / time["product"])
    table.row("step, fp32, share of the rate of matrix products (ratio = share)", time["fp32"], ideal, None, 0.6, None)
    large = {**example(200, MICRO_BATCHES * B), "id": torch.arange(MICRO_BATCHES * B)}
    both = {count: backward(objectives[0], large, count) for count in (1, MICRO_BATCHES)}
    time = seconds({str(count): work for count, work in both.items()}, given.rounds, given.clock)
    case = f"gradients of a batch in {MICRO_BATCHES} micro-batches, accumulate=features, against the undivided batch"
    table.row(case, time[str(MICRO_BATCHES)], time["1"], None, 1 / 1.4, None)
    table.finish()


if __name__ == "__main__":
    main()
