"""What the specification asks of a GPU, measured on the one at hand: 32k losses against the usual code, and the largest batch.

Times by device events after three warm-up rounds, memory by max_memory_allocated. Without a GPU it says so and ends with 0.

    python scripts/bench_gpu.py [--rows 32768] [--out FILE.json]
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from mmexpert.losses.clip import ClipLoss
from mmexpert.losses.siglip import SigLipLoss

D, WARM_UP, ROUNDS = 512, 3, 5


def usual(query: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """open_clip's ClipLoss as it stands in its loss.py."""
    query, target = F.normalize(query, dim=1), F.normalize(target, dim=1)
    own = torch.arange(len(query), device=query.device)
    return (F.cross_entropy(scale * query @ target.T, own) + F.cross_entropy(scale * target @ query.T, own)) / 2


def measured(work: Callable[[], Tensor]) -> tuple[float, float]:
    """(median seconds, peak GB) of value and gradients."""
    torch.cuda.reset_peak_memory_stats()
    taken = []
    for number in range(WARM_UP + ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work().backward()
        end.record()
        end.synchronize()
        if number >= WARM_UP:
            taken.append(start.elapsed_time(end) / 1e3)
    return statistics.median(taken), torch.cuda.max_memory_allocated() / 1e9


def sides(rows: int) -> list[Tensor]:
    """Random features that ask for gradients."""
    return [torch.randn(rows, D, device="cuda", requires_grad=True) for _ in range(2)]


def largest(loss: torch.nn.Module | Callable[..., Tensor]) -> int:
    """The largest power of two whose loss and gradients fit."""
    rows = 2**14
    while rows <= 2**20:
        try:
            loss(rows).backward()
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        rows *= 2
    return rows // 2


def main() -> None:
    """Prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32768)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("torch sees no GPU here: nothing was measured")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, D {D}, fp32, medians of {ROUNDS}")
    clip, siglip = ClipLoss(0.07, True, "out", "both").cuda(), SigLipLoss(0.1, True, -10.0, 1.0).cuda()
    query, target = sides(given.rows)
    keys = torch.arange(given.rows, device="cuda")
    works = {
        "clip": lambda: clip(query, target, keys)["loss_clip"],
        "siglip": lambda: siglip(query, target, keys)["loss_clip"],
        "usual clip": lambda: usual(query, target, clip.logit_scale.exp()),
    }
    rows = []
    for name, work in works.items():
        seconds, peak = measured(work)
        rows.append({"case": f"{name} B {given.rows}", "s": seconds, "peak_gb": peak})
        print(f"{name}, B {given.rows}: {1e3 * seconds:.1f} ms, peak {peak:.2f} GB", flush=True)
    works.clear()
    query = target = keys = None
    tests = {
        "clip": lambda n: clip(*sides(n), torch.arange(n, device="cuda"))["loss_clip"],
        "usual clip": lambda n: usual(*sides(n), clip.logit_scale.exp()),
    }
    for name, loss in tests.items():
        rows.append({"case": f"{name}, largest batch (to 2^20)", "rows": largest(loss)})
        print(f"{name}: largest batch {rows[-1]['rows']} (powers of two, to 2^20)", flush=True)
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
