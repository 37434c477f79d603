"""`python -m mmexpert.cv aggregate|status RUN`: the summary of a cross-validation from whatever folds are done; where each fold stands."""

import argparse
import json
import sys
from pathlib import Path

from mmexpert.engine.lock import holder
from mmexpert.engine.status import Status, read_status
from mmexpert.types import MmexpertError

COMMANDS = ("aggregate", "status")


def aggregate_run(folder: Path) -> str:
    """Rewrites the summary files and returns the table."""
    from mmexpert.engine.summary import aggregate, summary_table

    return summary_table(aggregate(folder))


def fold_states(folder: Path) -> str:
    """A line a fold: number, state, epoch, best epoch, monitored value, who holds its lock."""
    from mmexpert.engine.folds_file import FILE, read_folds_info

    numbers = [fold["fold"] for fold in read_folds_info(folder / FILE)["folds"]]
    rows = [("fold", "state", "epoch", "best", "monitor", "held by"), ("run", *_state(folder)[0:1], "", "", "", _holder(folder))]
    for number in numbers:
        path = folder / f"fold_{number}" if number else folder
        rows.append((str(number), *_state(path), _holder(path) if number else ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m mmexpert.cv", description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("run", type=Path, help="a run folder, such as outputs/radhar/default")
    given = parser.parse_args()
    try:
        sys.stdout.write({"aggregate": aggregate_run, "status": fold_states}[given.command](given.run))
    except MmexpertError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        raise SystemExit(error.exit_code) from error


def _state(folder: Path) -> tuple[str, str, str, str]:
    status: Status | None = read_status(folder)
    if status is None:
        return "not begun", "", "", ""
    best = str(status.best_epoch) if status.best_epoch is not None else ""
    return status.state, str(status.epoch), best, _monitored(folder)


def _monitored(folder: Path) -> str:
    """`valid/acc 0.913` of a finished fold; empty before metrics.json is there."""
    path = folder / "metrics.json"
    if not path.exists():
        return ""
    metrics = json.loads(path.read_text(encoding="utf-8"))
    value = metrics.get("best_value")
    return f"{metrics.get('monitor')} {value:.4f}" if isinstance(value, (int, float)) else ""


def _holder(folder: Path) -> str:
    owner = holder(folder)
    return f"process {owner.get('pid', '?')} on {owner.get('host', '?')}" if owner else ""


if __name__ == "__main__":
    main()
