"""Recall of composed retrieval runs against others over the same queries: difference and paired 95 % bootstrap interval.

python scripts/compare_queries.py --runs COMBINER_RUN ... --against SUM_RUN ... [--k 1]

The runs of both lists are paired in order (one pair a seed); the last line pools the pairs, drawing queries with all their seeds.
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from mmexpert.metrics.statistics import group_bootstrap


def hits(run: Path, k: int) -> dict[str, float]:
    """100 or 0 per query id: whether its target is among the first k of its gallery. Ends the script where no run is."""
    path = run / "ranks.csv"
    if not path.exists():
        raise SystemExit(f"{path} is not there: a finished run of experiment=cir_finetune or cir_combiner writes it, and mmexpert.evaluate")
    with open(path, encoding="utf-8", newline="") as file:
        return {row["id"]: 100.0 * (float(row["rank"]) <= k) for row in csv.DictReader(file)}


def told(name: str, first: dict[str, list[float]], second: dict[str, list[float]]) -> str:
    """A line of the table; values of a query are those of its seeds."""
    queries = [query for query, values in first.items() for _ in values]
    mine, theirs = (np.array([value for query in first for value in side[query]]) for side in (first, second))
    difference = mine - theirs
    low, high = group_bootstrap([(queries, [0] * len(queries))], lambda _, rows: float(difference[rows].mean()), seed=0)
    return f"| {name} | {mine.mean():.1f} | {theirs.mean():.1f} | {difference.mean():.1f} | {low:.1f} .. {high:.1f} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="run folders, or folders of evaluations")
    parser.add_argument("--against", type=Path, nargs="+", required=True, help="as many run folders")
    parser.add_argument("--k", type=int, default=1)
    given = parser.parse_args()
    if len(given.runs) != len(given.against):
        raise SystemExit(f"--runs names {len(given.runs)} folders, --against {len(given.against)}: they are paired in order")
    pairs = [[hits(run, given.k) for run in pair] for pair in zip(given.runs, given.against, strict=True)]
    expected = set(pairs[0][0])
    for pair, folders in zip(pairs, zip(given.runs, given.against, strict=True), strict=True):
        for side, folder in zip(pair, folders, strict=True):
            if set(side) != expected:
                raise SystemExit(f"{folder} ranks other queries than {given.runs[0]}: {len(set(side) ^ expected)} ids differ")
    print(f"| runs | R@{given.k} | against R@{given.k} | difference | 95 % over queries |\n|---|---|---|---|---|")
    for run, pair in zip(given.runs, pairs, strict=True):
        print(told(run.name, *({query: [value] for query, value in side.items()} for side in pair)))
    if len(pairs) > 1:
        print(told("all", *({query: [pair[side][query] for pair in pairs] for query in pairs[0][0]} for side in (0, 1))))


if __name__ == "__main__":
    main()
