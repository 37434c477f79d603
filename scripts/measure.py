"""What every benchmark needs: interleaved timing, the peak of live memory, agreement of candidates, the table."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], object]


def arguments(description: str | None) -> argparse.Namespace:
    """The flags of every benchmark, read from the command line; torch's threads are set."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest sizes alone")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds after one that warms up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu", help="cpu: steady under load; wall: for a quiet machine")
    parser.add_argument("--out", type=Path, help="the rows as JSON too")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, threads {given.threads}, {given.clock} clock{load}")
    return given


def seconds(candidates: dict[str, Work], rounds: int, clock: str) -> dict[str, float]:
    """Median seconds of each candidate; rounds interleaved (A B C A B C ...), one to warm up."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, work in candidates.items():
            start = now()
            work()
            if number:
                taken[name].append(now() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def peak_bytes(work: Work) -> int:
    """Largest sum of live CPU allocations while work runs, beyond what lived before: the profiler's memory events in time order."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        work()
    events = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def agree(case: str, results: dict[str, list[torch.Tensor]], tolerance: float) -> None:
    """Ends the script with 1 where a candidate's tensors differ from the first one's by more than tolerance of their size."""
    (reference, expected), *others = results.items()
    for name, tensors in others:
        for number, (one, other) in enumerate(zip(expected, tensors, strict=True)):
            error = float((one.double() - other.double()).norm() / one.double().norm().clamp(min=1e-12))
            if not error <= tolerance:
                raise SystemExit(f"{case}: tensor {number} of {name} differs from that of {reference} by {error:.1e}")


class Table:
    """Rows case | ours | peer | ratio | memory | goal | met, printed as they come."""

    def __init__(self, out: Path | None) -> None:
        self.rows: list[dict[str, object]] = []
        self.out = out
        print("\n| case | ours ms | peer ms | ratio | memory ours MB | memory peer MB | goal | met |\n|---|---|---|---|---|---|---|---|")

    def row(
        self, case: str, ours: float, peer: float, memory: tuple[int, int] | None, least_ratio: float | None, most_memory: float | None
    ) -> None:
        """ours, peer: seconds; memory: peak bytes of both; least_ratio: peer / ours; most_memory: ours / peer."""
        ratio, share = peer / ours, memory[0] / memory[1] if memory else None
        met = [] if least_ratio is None else [ratio >= least_ratio]
        met += [] if most_memory is None or share is None else [share <= most_memory]
        goal = ", ".join(
            text
            for text in (f">= {least_ratio:g}x" if least_ratio else "", f"memory <= 1/{1 / most_memory:g}" if most_memory else "")
            if text
        )
        verdict = "" if not met else "met" if all(met) else "missed"
        sizes = tuple(f"{n / 1e6:.0f}" for n in memory) if memory else ("", "")
        print(f"| {case} | {1e3 * ours:.1f} | {1e3 * peer:.1f} | {ratio:.1f}x | {sizes[0]} | {sizes[1]} | {goal} | {verdict} |", flush=True)
        self.rows.append({"case": case, "ours_s": ours, "peer_s": peer, "ratio": ratio, "memory": memory, "goal": goal, "met": verdict})

    def finish(self) -> None:
        """Writes the rows as JSON where asked for."""
        if self.out:
            self.out.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")
