"""Resident memory of one exact step of a large batch: 4096 simulated clips in micro-batches of 64, trainer.accumulate=features.

Simulates the clips first (not counted), then trains in a process of its own and prints its peak. Goal: under 6 GB on the CPU.

    python scripts/bench_large_batch.py [--batch 4096] [--micro 64]
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GOAL_GB = 6.0


def main() -> None:
    """Prints the peak of the training process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4096, help="samples of one optimizer step")
    parser.add_argument("--micro", type=int, default=64, help="samples of a micro-batch")
    parser.add_argument("--cache", type=Path, default=Path("outputs/cache"), help="where simulated clips are kept")
    given = parser.parse_args()
    overrides = [
        f"dataset.train={given.batch}", "dataset.valid=32", "dataset.test=32", f"dataset.cache_dir={given.cache.resolve()}",
        f"trainer.batch_size={given.batch}", f"trainer.accumulation={given.batch // given.micro}", "trainer.accumulate=features",
        "trainer.num_workers=0", "trainer.device=cpu",
    ]  # fmt: skip
    command = [sys.executable, "-m", "mmexpert.train", *overrides]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        check = [sys.executable, "-m", "mmexpert.check_data", *overrides]
        subprocess.run(check, cwd=folder, env=environment, check=True, capture_output=True)  # simulates what is missing
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        start = time.monotonic()
        subprocess.run([*command, "trainer.max_steps=1"], cwd=folder, env=environment, check=True)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    note = "" if peak > before else " (simulating took more)"
    verdict = "met" if peak * 1024 < GOAL_GB * 1e9 else "missed"
    seconds = time.monotonic() - start
    print(f"batch {given.batch} in {given.micro}s: peak {peak * 1024 / 1e9:.2f} GB{note}, {seconds:.0f} s, goal {GOAL_GB} GB: {verdict}")


if __name__ == "__main__":
    main()
