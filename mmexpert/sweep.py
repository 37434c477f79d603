"""`python -m mmexpert.sweep table DIR`: the runs below a folder as one table, on the screen and as sweep.csv and sweep.html."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmexpert.config import suggest
from mmexpert.engine.files import write_atomic
from mmexpert.sweep_page import csv_table, markdown, page
from mmexpert.sweep_rows import RunRow, metric_columns, run_rows, shown_columns, sorted_rows
from mmexpert.types import ConfigError, MmexpertError


def write_table(folder: Path) -> None:
    """sweep.csv and sweep.html of a folder of runs. Raises RunFolderError where it holds none, StorageError."""
    rows = sorted_rows(run_rows(folder), None)
    _write(folder, rows, None)


def table(folder: Path, metrics: Sequence[str], key: str | None, top: int | None, csv: Path | None) -> str:
    """The table of the runs below a folder; writes the files too, the CSV to csv where that is given.

    metrics: further columns, `test/acc` or `acc`. key: what to sort by; None: the monitored metric. top: rows on the screen.
    Raises ConfigError for a metric that no run has, RunFolderError where there are no runs, StorageError.
    """
    rows = sorted_rows(run_rows(folder), key)
    columns = shown_columns(rows)
    for metric in metrics:
        found = metric_columns(rows, metric)
        if not found:
            known = {name.split(" ", 1)[0] for row in rows for name in row.figures}
            raise ConfigError(f"--metric {metric}: no run below {folder} has it{suggest(metric, sorted(known))}")
        columns += [name for name in found if name not in columns]
    text = markdown(rows, columns, top)
    _write(folder, rows, csv, columns)
    return text


def arguments() -> argparse.ArgumentParser:
    """The command and what it takes."""
    parser = argparse.ArgumentParser(prog="python -m mmexpert.sweep", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="table")
    one = commands.add_parser("table", help="every run below a folder: what differs, state, figures, seconds")
    one.add_argument("folder", type=Path, metavar="DIR", help="a folder of run folders, such as outputs/radar")
    one.add_argument("--metric", action="append", default=[], metavar="M", help="a further column, such as test/acc; may be repeated")
    one.add_argument("--sort", metavar="KEY", help="a metric, configuration key, state, epochs, seconds or folder; without it the monitor")
    one.add_argument("--top", type=_positive, metavar="N", help="rows on the screen")
    one.add_argument("--csv", type=Path, metavar="FILE", help="where the CSV goes; without it DIR/sweep.csv")
    return parser


def main() -> None:
    """Entry point."""
    given = arguments().parse_args()
    try:
        sys.stdout.write(table(given.folder, given.metric, given.sort, given.top, given.csv))
    except MmexpertError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        raise SystemExit(error.exit_code) from error


def _write(folder: Path, rows: Sequence[RunRow], csv: Path | None, columns: Sequence[str] = ()) -> None:
    write_atomic(csv or folder / "sweep.csv", csv_table(rows))
    write_atomic(folder / "sweep.html", page(rows, columns or shown_columns(rows), f"Runs in {folder.name or folder.resolve().name}"))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a number of rows, 1 or more")
    return int(text)


if __name__ == "__main__":
    main()
