"""The training loop around an empty step, with clipping, against a plain PyTorch loop with clipping: what a step costs beyond its work.

Both step the same parameter: one product, backward, clipping, AdamW, schedule. The loop is a run's own, with meter, watch, tracker and
checkpoints; blocks of its steps and of plain ones alternate. Goal 17 of the specification: at most 0.5 ms more.

    python scripts/bench_loop.py [--rounds 5] [--out FILE.json]
"""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import arguments
from torch import Tensor, nn

from mmexpert import training
from mmexpert.command_line import composed, register
from mmexpert.config import check
from mmexpert.engine.loop import fit

STEPS = 400  # of a block
GOAL_S = 5e-4
OVERRIDES = ("dataset.train=64", "dataset.valid=32", "dataset.test=32", "trainer.batch_size=32", "trainer.num_workers=0", "name=loop")


class Measured(Exception):
    """Ends the run: the blocks are done."""


def measured_fit(times: dict[str, list[float]], rounds: int, now: Any) -> Any:
    """What stands for engine.loop.fit in a run: the same function, around an empty step."""

    def measure(objective: nn.Module, loaders: Any, evaluator: Any, optimizer: Any, schedule: Any, settings: Any, run: Any) -> None:
        batch = next(iter(loaders.train(0, 0)))[0]
        weight = objective.loss.logit_scale
        own = torch.optim.AdamW([weight], fused=True)
        own_schedule = torch.optim.lr_scheduler.LambdaLR(own, lambda _: 1.0)

        def empty(_: Any) -> tuple[dict[str, Tensor], None]:
            return {"loss_total": weight * 1.0}, None

        def plain() -> None:
            empty(batch)[0]["loss_total"].backward()
            nn.utils.clip_grad_norm_([weight], settings.max_grad_norm)
            own.step()
            own.zero_grad(set_to_none=True)
            own_schedule.step()

        def windows(*_: Any) -> Iterator[list[Any]]:
            for number in range(rounds + 1):  # the first warms up
                start = now()
                for _ in range(STEPS):
                    yield [batch]  # the loop's body runs until the next one is asked for
                between = now()
                for _ in range(STEPS):
                    plain()
                if number:
                    times["ours"].append((between - start) / STEPS)
                    times["plain"].append((now() - between) / STEPS)
            raise Measured

        objective.forward, loaders.train = empty, windows
        fit(objective, loaders, evaluator, optimizer, schedule, replace(settings, total_steps=STEPS * (rounds + 2)), run)

    return measure


def main() -> None:
    """Prints the row."""
    given = arguments(__doc__)
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    training.fit = measured_fit(times, given.rounds, time.process_time if given.clock == "cpu" else time.perf_counter)
    register()
    with tempfile.TemporaryDirectory() as folder:
        cfg = check(composed(*OVERRIDES, f"dataset.cache_dir={folder}/cache"))
        try:
            training.train_run(cfg, Path(folder) / "run", list(OVERRIDES), ())
        except Measured:
            ours, plain = (statistics.median(times[name]) for name in ("ours", "plain"))
    met = "met" if ours - plain <= GOAL_S else "missed"
    print(f"loop around an empty step: {1e3 * ours:.3f} ms, plain {1e3 * plain:.3f} ms, {1e3 * (ours - plain):.3f} ms more: {met}")
    row = {"case": "loop around an empty step", "ours_s": ours, "peer_s": plain, "ratio": plain / ours}
    if given.out:
        given.out.write_text(json.dumps([row | {"goal": "<= 0.5 ms more", "met": met}], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
