"""`python -m mmexpert.report RUN [RUN ...] [--out FILE.html]`: a run's page made again from its files, or several runs side by side.

Reads files only: no model, no data set, no network, and torch is not imported.
"""

import argparse
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmexpert.engine.files import write_atomic
from mmexpert.engine.status import flat
from mmexpert.pages.run_page import comparison_page, run_page
from mmexpert.pages.stored import StoredRun, open_stored
from mmexpert.types import MmexpertError, StorageError

FILE = "report.html"
COMPARISON = Path("outputs") / "comparison.html"


def write_report(folder: Path) -> Path:
    """Writes report.html of a run folder, or of one of its folds, and returns its path. Raises RunFolderError for what is none."""
    run = open_stored(folder)
    return _written(Path(folder) / FILE, run_page(run, defaults_of(run)))


def write_comparison(folders: list[Path], path: Path) -> Path:
    """Writes the page of several runs. Raises RunFolderError as write_report does, StorageError where path can not be written."""
    runs = [open_stored(folder) for folder in folders]
    twice = len({run.label for run in runs}) < len(runs)  # two of one name in different places
    named = [StoredRun(run.folder, str(run.folder) if twice else run.label, _letter(place)) for place, run in enumerate(runs)]
    return _written(path, comparison_page(named))


def _letter(place: int) -> str:
    """A, B ... Z, then 27, 28 ..."""
    return chr(ord("A") + place) if place < 26 else str(place + 1)


def _written(path: Path, page: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"--out {path}: {error.strerror}; name a file in a folder that can be written") from error
    write_atomic(path, page)
    return path


def defaults_of(run: StoredRun) -> dict[str, Any] | None:
    """The default values, by dotted key, of the options (experiment=hip, loss=siglip ...) that a run's command line chose; None where
    they can not be told, such as for options of another package."""
    from mmexpert.command_line import groups

    known, chosen = groups(), []
    for override in run.overrides if all(isinstance(one, str) for one in run.overrides) else []:
        key, _, value = override.partition("=")
        if value in known.get(key.lstrip("+"), ()):  # a stored command line is foreign text: only our own options are composed
            chosen.append(f"{key.lstrip('+')}={value}")
    return _composed_defaults(tuple(chosen))


@lru_cache(maxsize=8)
def _composed_defaults(chosen: tuple[str, ...]) -> dict[str, Any] | None:
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from mmexpert.command_line import composed

    try:
        plain = OmegaConf.to_container(composed(*chosen), resolve=True, throw_on_missing=False)
    except (HydraException, OmegaConfBaseException):
        return None
    return flat(plain)


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(prog="python -m mmexpert.report", description=__doc__)
    parser.add_argument("run", type=Path, nargs="+", help="a run folder, or a fold of one; several give one comparison")
    parser.add_argument("--out", type=Path, help=f"the page; without it RUN/{FILE}, for several runs {COMPARISON}")
    return parser


def main() -> None:
    """Entry point."""
    given = arguments().parse_args()
    try:
        if len(given.run) > 1:
            path = write_comparison(given.run, given.out or COMPARISON)
        elif given.out is not None:
            run = open_stored(given.run[0])
            path = _written(given.out, run_page(run, defaults_of(run)))
        else:
            path = write_report(given.run[0])
    except MmexpertError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        raise SystemExit(error.exit_code) from error
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
