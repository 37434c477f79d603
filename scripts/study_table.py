"""Sums up a multirun over seeds: one row per setting, mean and 95 % t interval over the seeds of each metric asked for.

python scripts/study_table.py outputs/order_study --by similarity._target_ dataset.shuffle_time
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

METRICS = ("test/hard_order", "test/sequence_hard_order", "test/pooled_hard_order", "test/radar_to_text_R@10", "test/text_to_radar_R@10")


def looked_up(config: Any, key: str) -> Any:
    """Value of a dotted key; None where a parent is None (a part that was not chosen)."""
    for name in key.split("."):
        if config is None:
            return None
        config = config[name]
    return config


def cell(values: list[float]) -> str:
    """Mean and 95 % t interval over seeds."""
    if not values:
        return ""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.1f}"
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return f"{mean:.1f} ± {half:.1f}"


def main() -> None:
    """Prints the table; a run that is not finished ends the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="outputs/<name> of the multirun")
    parser.add_argument("--by", nargs="+", default=["similarity._target_", "dataset.shuffle_time"], help="keys that make a setting")
    parser.add_argument("--metrics", nargs="+", default=list(METRICS))
    given = parser.parse_args()
    settings: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in sorted(path.parent for path in given.folder.glob("*/config.json")):
        if not (run / "metrics.json").exists():
            raise SystemExit(f"{run} is not finished: the same command again continues it")
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))["config"]
        names = tuple(str(looked_up(config, key)).rsplit(".", 1)[-1] for key in given.by)
        settings.setdefault(names, []).append(json.loads((run / "metrics.json").read_text(encoding="utf-8")))
    print(f"| {' | '.join([*given.by, 'runs', *given.metrics])} |\n|{'---|' * (len(given.by) + 1 + len(given.metrics))}")
    for names, runs in settings.items():
        cells = [cell([run[metric] for run in runs if metric in run]) for metric in given.metrics]
        print(f"| {' | '.join([*names, str(len(runs)), *cells])} |")


if __name__ == "__main__":
    main()
