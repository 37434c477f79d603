"""`python -m mmexpert.cv aggregate|status RUN`: the summary of a cross-validation from whatever folds are done; where each fold stands."""

import argparse
import sys
from pathlib import Path

from mmexpert.engine.lock import holder
from mmexpert.engine.status import read_status
from mmexpert.types import MmexpertError, RunFolderError


def aggregate_run(folder: Path) -> str:
    """Rewrites the summary files and returns the table."""
    from mmexpert.engine.summary import aggregate, summary_table

    return summary_table(aggregate(folder))


def fold_states(folder: Path) -> str:
    """A line a fold: state, epoch, holder of its lock."""
    folds = sorted(folder.glob("fold_*"), key=lambda path: int(path.name.rpartition("_")[2]))
    if not folds:
        raise RunFolderError(f"{folder} holds no fold_1, fold_2, ...: it is no cross-validation")
    owner = holder(folder)
    lines = [f"run held by {owner}" if owner else "run not held by any process"]
    for path in folds:
        status = read_status(path)
        lines.append(f"{path.name}: {status.state}, epoch {status.epoch}, best epoch {status.best_epoch}" if status else f"{path.name}: absent")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m mmexpert.cv", description=__doc__)
    parser.add_argument("command", choices=["aggregate", "status"])
    parser.add_argument("run", type=Path)
    given = parser.parse_args()
    try:
        sys.stdout.write({"aggregate": aggregate_run, "status": fold_states}[given.command](given.run))
    except MmexpertError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        raise SystemExit(error.exit_code) from error


if __name__ == "__main__":
    main()
