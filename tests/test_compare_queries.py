"""scripts/compare_queries.py pairs the same queries of two runs and draws queries, not rows."""

import csv
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "compare_queries.py"


def run_of(folder, ranks):
    """A run folder that holds ranks alone: {query id: rank}."""
    folder.mkdir()
    with open(folder / "ranks.csv", "w", newline="") as file:
        csv.writer(file).writerows([("id", "rank"), *ranks.items()])
    return str(folder)


def compared(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


def test_queries_are_paired_by_id_and_seeds_of_a_query_are_drawn_together(tmp_path):
    better = {f"q{i}": 1.0 if i % 2 else 7.0 for i in range(100)}  # R@1 50
    worse = {f"q{i}": 1.0 if i % 4 == 1 else 7.0 for i in reversed(range(100))}  # R@1 25, in another order
    runs = [run_of(tmp_path / f"a{seed}", better) for seed in (1, 2)]
    against = [run_of(tmp_path / f"b{seed}", worse) for seed in (1, 2)]
    lines = compared("--runs", *runs, "--against", *against).stdout.splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[:4] for row in cells] == [["a1", "50.0", "25.0", "25.0"], ["a2", "50.0", "25.0", "25.0"], ["all", "50.0", "25.0", "25.0"]]
    intervals = [tuple(float(bound) for bound in row[4].split(" .. ")) for row in cells]
    standard_error = 100 * (0.25 * 0.75 / 100) ** 0.5
    for low, high in intervals:  # two seeds with equal hits tell no more than one
        assert abs(low - (25 - 1.96 * standard_error)) < 1.5 and abs(high - (25 + 1.96 * standard_error)) < 1.5
    at_ten = compared("--runs", runs[0], "--against", against[0], "--k", "10").stdout.splitlines()[2]
    assert "| 100.0 | 100.0 | 0.0 | 0.0 .. 0.0 |" in at_ten


def test_runs_over_other_queries_and_unfinished_runs_are_refused(tmp_path):
    first, other = run_of(tmp_path / "a", {"q1": 1}), run_of(tmp_path / "b", {"q2": 1})
    refused = compared("--runs", first, "--against", other)
    assert refused.returncode == 1 and "ranks other queries" in refused.stderr
    refused = compared("--runs", first, "--against", str(tmp_path / "c"))
    assert refused.returncode == 1 and "ranks.csv is not there" in refused.stderr
