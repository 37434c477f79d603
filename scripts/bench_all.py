"""All benchmarks, one after the other, and docs/benchmarks.md: each goal of the specification with what was reached, or "not measured".

python scripts/bench_all.py --quick                  # the smaller sizes, one thread, CPU clock; rounds: --rounds 3
python scripts/bench_all.py --quick --only bench_data bench_ranks   # others keep what the last run stored
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "benchmarks.md"
STORE = ROOT / "docs" / "benchmarks.json"
SCRIPTS = ("bench_startup", "bench_data", "bench_losses", "bench_ranks", "bench_similarity", "bench_loop", "bench_step")
FRESH = 5  # rounds of bench_startup: fresh interpreters scatter more than work inside one
LIMIT_S = {True: 240, False: 3600}  # of one script: a loaded machine must not hold up the others
HEAD = """# Benchmarks
Written by `python scripts/bench_all.py`; nothing here is typed by hand. Ratio: peer / ours, medians of interleaved rounds in one process;
milliseconds of CPU time of one thread; memory: peak of live allocations in MB, ours / peer. A goal that is missed says so.
"""


@dataclass(frozen=True)
class Goal:
    """A row of the specification's goal table. rows: what the names of its cases hold; without: `by` says which test shows it."""

    number: str
    what: str
    goal: str
    script: str = ""
    rows: tuple[str, ...] = ()
    by: str = ""


GOALS = (
    Goal("1", "clip, B 4096, store, against open_clip", ">= 2.0x, memory <= 1/2.5", "bench_losses", ("clip B 4096, scale 14.3, store",)),
    Goal("2", "clip, B 8192, recompute", ">= 2.0x, memory <= 1/18", "bench_losses", ("clip B 8192, scale 14.3, recompute",)),
    Goal("3", "clip, B 4096, recompute", ">= 2.0x, memory <= 1/8", "bench_losses", ("clip B 4096, scale 14.3, recompute",)),
    Goal("4", "clip, scale above 75", ">= 1.7x", "bench_losses", ("clip B", "scale 100")),
    Goal("5", "clip, any B from 64 to 2048", ">= 1.0x", "bench_losses", ("clip B", "auto")),
    Goal("6", "clip with keys, B 4096, against a mask", ">= 2.0x, memory <= 1/3", "bench_losses", ("clip B 4096, keys",)),
    Goal("7", "siglip, B 4096 and 8192, against open_clip", ">= 1.8x, <= 1/7; >= 2.0x, <= 1/14", "bench_losses", ("siglip B", "usual")),
    Goal("8", "siglip, B 4096, against chunks", ">= 1.15x, memory <= 1/2", "bench_losses", ("siglip B 4096", "chunks")),
    Goal("9", "gradient error of tiles against float64", "<= 5e-6", by="tests/losses/test_tiled.py"),
    Goal("10", "global and local against the loop", ">= 100x; >= 30x", "bench_similarity", ("against the loop", "lobal|local")),
    Goal("11", "local against autograd", ">= 1.2x, memory <= 1/2", "bench_similarity", ("local against autograd",)),
    Goal("12", "attention against the loop; einsum", ">= 10x; >= 4x, memory <= 1/20", "bench_similarity", ("attention against",)),
    Goal("13", "temporal against the loop; autograd", ">= 60x; >= 1.8x, memory <= 1/2", "bench_similarity", ("temporal against",)),
    Goal("14", "combined against the four summed", ">= 1.5x, memory <= 1/4", "bench_similarity", ("combined against",)),
    Goal("15", "training step, fp32; bf16", ">= 1.1x; >= 1.5x", "bench_step", ("step,", "against")),
    Goal("16", "the step against the rate of products", ">= 60 %", "bench_step", ("share of the rate",)),
    Goal("17", "loop around an empty step", "<= 0.5 ms more per step", "bench_loop", ("empty step",)),
    Goal("18", "host reads of device values per step", "0", by="tests/engine/test_training_step.py"),
    Goal("19", "ranks, 5,000 pairs, against argsort", ">= 10x, memory <= 1/40", "bench_ranks", ("argsort, 5000 pairs",)),
    Goal("20", "ranks against plain counting", ">= 1.8x", "bench_ranks", ("counting", "pairs")),
    Goal("21", "radar batches, pack f32", ">= 3x, 1e-6", "bench_data", ("map f32 (",)),
    Goal("22", "radar batches, pack f16", ">= 20x, 5e-4", "bench_data", ("pack f16 (",)),
    Goal("23", "--help, --cfg job, against bare compose", "<= 1.3x the time", "bench_startup", ("--",)),
    Goal("24", "default run to its first step", "<= 1 s more than imports", "bench_startup", ("first step",)),
    Goal("25", "accumulate=features", "1e-12; <= 1.4x time (ratio 0.71)", "bench_step", ("accumulate=features",)),
    Goal("26", "2 and 4 processes", "1e-12 per parameter group", by="tests/losses/test_gather.py"),
)  # fmt: skip


def measured(script: str, quick: bool, rounds: int) -> dict[str, object]:
    """Rows of a script in a process of its own, with the machine's state; `fault` where it did not end well."""
    out = STORE.with_name(f"{script}.tmp.json")
    rounds = max(rounds, FRESH) if script == "bench_startup" else rounds
    command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), "--rounds", str(rounds), "--out", str(out), *["--quick"] * quick]
    start = time.monotonic()
    try:
        ended = subprocess.run(command, cwd=ROOT / "scripts", env=environment(), timeout=LIMIT_S[quick], capture_output=True, text=True)
        fault = "" if not ended.returncode else (ended.stderr or ended.stdout).strip().splitlines()[-1]
    except subprocess.TimeoutExpired:
        fault = f"not done after {LIMIT_S[quick]} s"
    rows = json.loads(out.read_text()) if out.exists() else []
    out.unlink(missing_ok=True)
    print(f"{script}: {len(rows)} rows, {time.monotonic() - start:.0f} s {fault}", flush=True)
    return {"rows": rows, "fault": fault, "load": round(os.getloadavg()[0], 1), "date": time.strftime("%Y-%m-%d"), "rounds": rounds}


def environment() -> dict[str, str]:
    """One thread: CPU seconds of one thread hold under load."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def of_goal(goal: Goal, found: dict[str, dict]) -> list[dict]:
    """The rows that show a goal: each part of goal.rows occurs in the case, a|b is either."""
    rows = found.get(goal.script, {}).get("rows", [])
    return [row for row in rows if all(any(word in row["case"] for word in part.split("|")) for part in goal.rows)] if goal.rows else []


def line(goal: Goal, row: dict | None, found: dict[str, dict]) -> str:
    """A row of the table."""
    if row is None:
        fault = found.get(goal.script, {}).get("fault", "")
        told = f"shown by {goal.by}" if goal.by else f"not measured{f': {fault}' if fault else ''}"
        return f"| {goal.number} | {goal.what} | {goal.goal} | | | | | {told} |"
    memory = " / ".join(f"{n / 1e6:.0f}" for n in row["memory"]) if row.get("memory") else ""
    times = f"{1e3 * row['ours_s']:.4g} | {1e3 * row['peer_s']:.4g} | {row['ratio']:.2f}x"
    return f"| {goal.number} | {row['case']} | {goal.goal} | {times} | {memory} | {row.get('met') or 'no goal for this size'} |"


def document(found: dict[str, dict]) -> str:
    """The whole page."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    rows = [line(goal, row, found) for goal in GOALS for row in of_goal(goal, found) or [None]]
    states = []
    for name, run in found.items():
        fault = f", {run['fault']}" if run["fault"] else ""
        states.append(f"{name}: {run['date']}, {run['rounds']} rounds, load {run['load']}{fault}")
    machine = f"{processor()}, {os.cpu_count()} cores seen, one thread, CPU clock; {platform.system()}, Python {platform.python_version()}"
    parts = [
        HEAD,
        f"Machine: {machine}, {', '.join(versions())}; commit {commit}.\n",
        *(f"- {state}" for state in states),
        "\n| goal | case | asked for | ours ms | peer ms | ratio | memory MB | met |\n|---|---|---|---|---|---|---|---|",
        *rows,
        "\n## GPU\nNot measured: no GPU was at hand. `scripts/bench_gpu.py` measures where there is one.\n",
    ]
    return "\n".join(parts)


def processor() -> str:
    """The processor's name, where the system tells."""
    info = Path("/proc/cpuinfo")
    names = [row.split(":")[1].strip() for row in info.read_text().splitlines() if row.startswith("model name")] if info.exists() else []
    return names[0] if names else platform.machine()


def versions() -> list[str]:
    """Of the libraries that are compared."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in ("torch", "accelerate", "open_clip_torch", "timm", "hydra-core"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} absent (its formula written out; pip install -e .[bench])")
    return found


def main() -> None:
    """Runs the scripts and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smaller sizes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(SCRIPTS), choices=SCRIPTS, help="run these; the others keep their stored rows")
    given = parser.parse_args()
    STORE.parent.mkdir(exist_ok=True)
    found = json.loads(STORE.read_text(encoding="utf-8")) if STORE.exists() else {}
    for script in given.only:
        found[script] = measured(script, given.quick, given.rounds)
        STORE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        DOCUMENT.write_text(document(found), encoding="utf-8")


if __name__ == "__main__":
    main()
