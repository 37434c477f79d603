"""An epoch of the Combiner over cached features against the same epoch through the towers: same rows, same losses, how much faster?

    python scripts/bench_cir.py [--quick]

One process builds both from one seed (dropout 0), trains both for two epochs and compares every loss; the second epoch is timed. A
ResNet-50 on pictures of 224 pixels stands for a pretrained tower; the embedded preset's own tower is so small that the Combiner itself
takes the time.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measure import Table, arguments  # noqa: E402

from mmexpert import build  # noqa: E402
from mmexpert.command_line import composed  # noqa: E402
from mmexpert.config import check  # noqa: E402

CASES = {
    "conv 32 px (the preset)": ([], None),
    "resnet50 224 px": (["encoder/image=resnet50", "encoder.image.weights=null", "encoder.image.side=224"], 50.0),
}
SEED, TOLERANCE = 0, 1e-6


class Training:
    """Stage 2 without a run folder, from one seed. triplets: of an epoch."""

    def __init__(self, folder: Path, triplets: int, overrides: Sequence[str]) -> None:
        sizes = f"dataset.triplets={{train: {triplets}, valid: 0, test: 0}}"
        places = [f"cache_dir={folder}", f"dataset.cache_dir={folder}"]
        self.cfg = cfg = check(
            composed(
                "experiment=cir_combiner",
                sizes,
                *places,
                "combiner.dropout=0",
                "trainer.num_workers=0",
                "trainer.batch_size=64",
                *overrides,
            )
        )
        dataset = build.build_dataset(cfg)
        parts = {part: dataset.part(part) for part in ("train", "valid", "test")}
        tokenizer = build.build_tokenizer(cfg, dataset.vocabulary_texts(parts["train"]))
        torch.manual_seed(SEED)
        model = build.build_model(cfg, None, tokenizer)
        self.objective = build.build_objective(cfg, model, None)
        begun = time.perf_counter()
        cache = build.build_cache(cfg, model, dataset, tokenizer)
        self.filling = time.perf_counter() - begun
        served = (cache.dataset, cache.tokenizer) if cache else (dataset, tokenizer)
        self.loaders = build.build_loaders(cfg, served[0], parts, served[1], SEED, build.Placement(torch.device("cpu")))
        self.optimizer, _ = build.build_optimizer(cfg, self.objective, self.loaders.steps_per_epoch)

    def epoch(self, number: int) -> tuple[list[float], float]:
        """(loss of each step, seconds)."""
        self.objective.train()
        begun, losses = time.perf_counter(), []
        for (batch,) in self.loaders.train(number, 0):
            loss = self.objective(batch)[0]["loss_total"]
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.objective.clamp_()
            losses.append(float(loss.detach()))
        return losses, time.perf_counter() - begun


def main() -> None:
    """Both epochs of each case, and the table."""
    given = arguments(__doc__)
    table = Table(given.out)
    triplets = 64 if given.quick else 192
    with tempfile.TemporaryDirectory() as folder:
        for case, (overrides, goal) in CASES.items():
            cached, plain = Training(Path(folder), triplets, overrides), Training(Path(folder), triplets, [*overrides, "cache=false"])
            worst, taken = 0.0, (0.0, 0.0)
            for number in range(2):
                (ours, fast), (theirs, slow) = cached.epoch(number), plain.epoch(number)
                worst = max(worst, *(abs(a - b) for a, b in zip(ours, theirs, strict=True)))
                taken = fast, slow
            if worst > TOLERANCE:
                raise SystemExit(f"{case}: a loss differs by {worst:.1e}, more than {TOLERANCE}")
            told = f"{case}, {triplets} triplets, losses within {worst:.0e}, cache filled in {cached.filling:.1f} s"
            table.row(told, *taken, None, goal, None)


if __name__ == "__main__":
    main()
