"""`python -m mmexpert.cv aggregate|status|compare RUN ...`: the summary of the folds that are done, where each stands, runs compared.

`python -m mmexpert.cv split [overrides of mmexpert.train]`: the folds of a run that is to come.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from mmexpert.engine.lock import holder
from mmexpert.engine.status import Status, read_status
from mmexpert.types import ConfigError, MmexpertError, StorageError

log = logging.getLogger(__name__)
COMMANDS = ("aggregate", "status", "compare", "split")


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


def compare_runs_of(given: argparse.Namespace) -> str:
    """Returns the table of a comparison; writes comparison.json and comparison.md where --out names a folder."""
    from mmexpert.engine.comparison import compare_runs, comparison_table
    from mmexpert.engine.files import strict_json, write_atomic

    wanted = given.baseline or given.run[0]
    places = [place for place, run in enumerate(given.run) if run.resolve() == wanted.resolve()]
    if len(given.run) < 2 or not places:
        raise ConfigError(f"compare needs two runs or more, and --baseline {wanted} must be one of them")
    comparison = compare_runs(given.run, given.metric, places[0])
    table = comparison_table(comparison)
    if given.out is not None:
        try:
            given.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"--out {given.out}: {error.strerror}; name a folder that can be written") from error
        write_atomic(given.out / "comparison.json", strict_json(comparison, indent=1))
        write_atomic(given.out / "comparison.md", table)
    return table


def arguments() -> argparse.ArgumentParser:
    """The commands and what each takes."""
    parser = argparse.ArgumentParser(prog="python -m mmexpert.cv", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))
    for name, text in (("aggregate", "rewrite the summary from the folds that are done"), ("status", "where each fold stands")):
        one = commands.add_parser(name, help=text)
        one.add_argument("run", type=Path, help="a run folder, such as outputs/radhar/default")
    compare = commands.add_parser("compare", help="runs on the same folds against a baseline")
    compare.add_argument("run", type=Path, nargs="+", help="two run folders or more")
    compare.add_argument("--metric", required=True, help="of the test parts, such as balanced_acc; valid/X for the inner parts")
    compare.add_argument("--baseline", type=Path, help="the run that the others are compared with; without it the first")
    compare.add_argument("--out", type=Path, help="folder for comparison.json and comparison.md")
    commands.add_parser("split", help="write folds_info.json and classes.json of a run; takes the overrides of mmexpert.train")
    return parser


def split() -> None:
    """Writes the folds and the class table of the run that the overrides name, trains nothing, and logs a line a fold."""
    from mmexpert import build
    from mmexpert.command_line import composed, run_folder, trust_list
    from mmexpert.config import check, instantiate
    from mmexpert.engine.class_merge import without_small
    from mmexpert.engine.folds_file import FILE, settle_folds, write_class_table

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    overrides = sys.argv[1:]
    plain = check(composed(*overrides))
    folder = Path("outputs") / plain["name"] / run_folder([one for one in overrides if not one.lstrip("+~").startswith("hydra.")])
    settings = instantiate(plain["cv"], "cv", trust_list)
    dataset = without_small(build.build_dataset(plain, tuple(trust_list)), settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror}; run where outputs/ can be written") from error
    folds = settle_folds(folder, dataset, settings)
    write_class_table(folder, dataset)
    group_of = {record.id: record.group for record in dataset.records}
    for fold in folds:
        parts = {"train": fold.train, "valid": fold.valid, "test": fold.test}
        counts = (f"{len(ids)} {part} in {len({group_of[sample] for sample in ids})} groups" for part, ids in parts.items())
        log.info("fold %d: %s", fold.number, ", ".join(counts))
    log.info("%s", folder / FILE)


def main() -> None:
    """Entry point."""
    if sys.argv[1:2] == ["split"] and not {"-h", "--help"} & set(sys.argv[2:]):
        from mmexpert.command_line import launch

        sys.argv[1:] = sys.argv[2:]
        launch(split)  # overrides are Hydra's, and so are their errors
        return
    given = arguments().parse_args()
    try:
        if given.command == "compare":
            sys.stdout.write(compare_runs_of(given))
        else:
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
