"""The keys of the group cv, checked against each other before anything is built."""

from dataclasses import dataclass

from mmexpert.engine.splitting import Splitter
from mmexpert.types import ConfigError


@dataclass(frozen=True)
class CvSettings:
    """splitter: None (the data set's own parts, else a grouped cut by fractions), or what makes a scikit-learn splitter.

    seed: of the splits; repeat r has seed + r - 1. inner_val: share of the training part that chooses the checkpoint. selection:
    inner | last (epoch) | outer (the test part chooses: optimistic, and stamped so). fold: None, a number from 1, or a list.
    small_classes: error | merge | skip | allow. headline: a metric's name, None = balanced_acc with classes, else the monitored one.
    n_splits: None = one fold a group, or as many as file has (the splitter then cuts inner parts). max_folds: over all repeats.
    over: groups, or rows (which knowingly lets a group straddle). workers: processes for the folds, auto = one a device. refit: one model
    on all rows after the folds. inner_splits, grid: of cv=nested, folds within a training part and the overrides compared on them.
    """

    method: str
    splitter: Splitter | None
    n_splits: int | None
    n_repeats: int
    seed: int
    inner_val: float
    selection: str
    fold: int | list[int] | None
    fractions: list[float] | None
    small_classes: str
    same_init: bool
    headline: str | None
    over: str
    max_folds: int
    file: str | None
    workers: int | str
    refit: bool
    inner_splits: int | None
    grid: list[str] | None

    def __post_init__(self) -> None:
        if self.over not in ("groups", "rows"):
            raise ConfigError(f"cv.over={self.over}: choose groups or rows")
        if self.workers != "auto" and not (isinstance(self.workers, int) and self.workers >= 1):
            raise ConfigError(f"cv.workers={self.workers}: choose 1, more, or auto (one a device)")
        if self.selection not in ("inner", "last", "outer"):
            raise ConfigError(f"cv.selection={self.selection}: choose inner, last or outer")
        if self.small_classes not in ("error", "merge", "skip", "allow"):
            raise ConfigError(f"cv.small_classes={self.small_classes}: choose error, merge, skip or allow")
        if not 0 <= self.inner_val < 1 or self.seed < 0:
            raise ConfigError(f"cv.inner_val={self.inner_val} is a share, 0 to below 1; cv.seed={self.seed} is 0 or above")
        if self.max_folds < 1:
            raise ConfigError(f"cv.max_folds={self.max_folds}: 1 or more")
        self._check_single() if self.splitter is None else self._check_folds()

    def _check_single(self) -> None:
        shares = self.fractions or []
        if len(shares) != 3 or abs(sum(shares) - 1) > 1e-6 or min(shares) < 0 or shares[0] == 0:
            raise ConfigError(
                f"cv.fractions={self.fractions}: a list, shares of train (above 0), valid and test whose sum is 1, such as [0.6,0.2,0.2]"
            )
        given = {"n_splits": 1, "n_repeats": 1, "fold": None, "small_classes": "error", "same_init": False, "headline": None}
        given |= {"over": "groups", "file": None, "workers": 1, "refit": False, "inner_splits": None, "grid": None}
        for key, only in given.items():  # nothing is accepted and ignored
            if getattr(self, key) != only:
                raise ConfigError(f"cv.{key}={getattr(self, key)}: cv={self.method} makes no folds; choose cv=group or cv=stratified_group")
        if self.selection == "outer":
            raise ConfigError(f"cv.selection=outer needs folds; with cv={self.method} choose inner or last")

    def _check_folds(self) -> None:
        if (self.n_splits is not None and self.n_splits < 2) or self.n_repeats < 1:
            raise ConfigError(f"cv.n_splits={self.n_splits} is 2 or more, cv.n_repeats={self.n_repeats} is 1 or more")
        if self.n_splits is None and self.n_repeats > 1:
            raise ConfigError(f"cv.n_repeats={self.n_repeats}: the folds of cv={self.method} are the same in every repeat")
        if (self.method == "file") != (self.file is not None):
            raise ConfigError(f"cv.file={self.file} with cv={self.method}: give a path with cv=file, and none with another method")
        if (self.n_splits or 0) * self.n_repeats > self.max_folds:
            raise ConfigError(
                f"cv.n_splits={self.n_splits} x cv.n_repeats={self.n_repeats} are more folds than cv.max_folds={self.max_folds}"
            )
        if self.fractions is not None:
            raise ConfigError(f"cv.fractions={self.fractions}: shares belong to cv=none; with cv={self.method} set cv.n_splits")
        if self.selection == "inner" and self.inner_val == 0:
            raise ConfigError("cv.inner_val=0 leaves nothing that chooses the checkpoint: set cv.selection=last, or a share above 0")
        self._check_nested()
        if self.selection == "outer" and self.inner_val > 0:
            raise ConfigError(f"cv.selection=outer has no inner part: set cv.inner_val=0 (it is {self.inner_val})")

    def _check_nested(self) -> None:
        if self.method != "nested":
            if self.inner_splits is not None or self.grid is not None:
                raise ConfigError(f"cv.inner_splits and cv.grid belong to cv=nested; cv={self.method} has null in both")
            return
        if self.inner_splits is None or self.inner_splits < 2:
            raise ConfigError(f"cv.inner_splits={self.inner_splits}: 2 or more")
        if not self.grid or any(not isinstance(entry, str) for entry in self.grid) or len(set(self.grid)) < len(self.grid):
            raise ConfigError(
                f"cv.grid={self.grid}: a list of different override strings, such as cv.grid=['optimizer.lr=1e-3','optimizer.lr=1e-4']; "
                "blanks part several overrides of one entry, '' is the run as it is"
            )
        if self.selection == "outer":
            raise ConfigError("cv.selection=outer looks at the test parts, which cv=nested is there to avoid; choose inner or last")
        if self.refit:
            raise ConfigError("cv.refit=true: each fold of cv=nested has a winner of its own; train the one that wins most by itself")
