"""The training step of three view transformers (depth 4, width 192) and a BERT of 384 x 6, B 8, against timm's towers and foreach AdamW.

Both sides: dropout off, forward, contrastive loss, backward, clipping, AdamW. The towers' products are counted, not assumed equal: the
FLOPs of both are printed. Goals 15 and 16 of the specification; 17 (loop) and 18 (host reads) are tests/engine/test_training_step.py.

    python scripts/bench_step.py [--quick] [--rounds 3] [--out FILE.json]
"""

from collections.abc import Callable

import torch
from bench_losses import usual_clip
from measure import Table, arguments, seconds
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mmexpert import build
from mmexpert.command_line import composed
from mmexpert.data.views import VIEW_ROWS
from mmexpert.types import Batch

B, T, M, D = 8, 496, 20, 256
MATRIX = 1024  # side of the products whose rate goal 16 is a share of
OVERRIDES = (
    "encoder/radar=vit", "encoder.radar.tower.dropout=0", "encoder.radar.trunk.dropout=0", f"model.projection_dim={D}",
    "encoder.text.bert={width: 384, layers: 6, heads: 6, feedforward: 1536, dropout: 0.0}",
)  # fmt: skip


class Peer(nn.Module):
    """timm's vision transformers of the same patches, averaged, and the text tower that is given; features of both sides."""

    def __init__(self, text: nn.Module) -> None:
        from timm.models.vision_transformer import VisionTransformer

        super().__init__()
        made = {"in_chans": 1, "num_classes": 0, "embed_dim": 192, "depth": 4, "num_heads": 3, "class_token": False, "global_pool": "avg"}
        self.towers = nn.ModuleDict(
            {view: VisionTransformer(img_size=(rows, T), patch_size=(rows // 8, 16), **made) for view, rows in VIEW_ROWS.items()}
        )
        self.fuse, self.text, self.scale = nn.Linear(3 * 192, D), text, nn.Parameter(torch.tensor(2.66))

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a batch."""
        radar = self.fuse(torch.cat([tower(batch["radar"][view][:, None]) for view, tower in self.towers.items()], dim=1))
        text = self.text(batch["text"]).features
        return usual_clip(F.normalize(radar, dim=1), F.normalize(text, dim=1), self.scale.exp(), batch["positive_key"])


def example(tokens: int) -> Batch:
    """Random clips and captions of full length."""
    generator = torch.Generator().manual_seed(0)
    radar = {view: torch.rand(B, rows, T, generator=generator) for view, rows in VIEW_ROWS.items()}
    ids = torch.randint(5, tokens, (B, M), generator=generator)
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {"radar": radar | {"mask": torch.ones(B, T, dtype=torch.bool)}, "text": text, "positive_key": torch.arange(B)}


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


def main() -> None:
    """Prints the table."""
    given = arguments(__doc__)
    cfg = composed(*OVERRIDES)
    words = [f"word{i} walks{i} past{i}" for i in range(600)]
    tokenizer = build.build_tokenizer(cfg, words)
    torch.manual_seed(0)
    models = [build.build_model(cfg, None, tokenizer) for _ in range(3)]
    objectives = [build.build_objective(cfg, model, tokenizer.corpus(words)).train() for model in models[:2]]
    peer, batch = Peer(models[2].encoders["text"]).train(), example(200)
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
    table.finish()


if __name__ == "__main__":
    main()
