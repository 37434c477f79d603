"""Checkpoints of a run: written under a temporary name, with checksums, renamed when whole; read only when they verify.

Accelerate's own writes in place, forgets generators and unpickles what it finds, so none of it is used here.
"""

import logging
import shutil
import time
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from mmexpert.engine import random_state
from mmexpert.engine import step_folder as disk
from mmexpert.engine.best import reconcile
from mmexpert.engine.files import plain
from mmexpert.engine.keep_settings import KeepSettings
from mmexpert.engine.parts import is_sharded, parted_state, whole_tree
from mmexpert.engine.progress import Choice, Progress
from mmexpert.engine.resume_checks import check_identity, group_names, load_module, refuse_nonfinite
from mmexpert.types import RunFolderError, StorageError

log = logging.getLogger(__name__)


class RankGroup(Protocol):
    """What checkpoints ask of the processes."""

    rank: int
    processes: int

    def gather_objects(self, thing: Any) -> list[Any]:
        """One entry a rank, on every rank."""


class Checkpoints:
    """The folder checkpoints/ of one run or fold. Every rank calls restore and save, at the same steps.

    identity: plain values that must be the same at a resume (config_hash, fingerprint, seed, batch_size, ...), but for versions, which
    may differ with a warning. allow_world_change: another number of processes may continue, no longer exactly.
    After restore: resumed_step (None = fresh start), exact, extra (plain values kept with the state, such as tracker run ids).
    """

    def __init__(
        self, folder: Path, identity: dict[str, Any], keep: KeepSettings, choice: Choice, ranks: RankGroup, allow_world_change: bool = False
    ) -> None:
        self.folder, self.identity, self.keep, self.choice, self.ranks = Path(folder), identity, keep, choice, ranks
        self.allow_world_change = allow_world_change
        self.extra: dict[str, Any] = {}
        self.resumed_step: int | None = None
        self.exact = True
        self._best: dict[str, list[dict[str, Any]]] | None = None
        self._random: dict[str, Any] | None = None
        self._saved_at = time.monotonic()  # not time.time(): a clock set back must not put off a save

    def due(self, progress: Progress) -> bool:
        """Whether save_every_steps asks for a checkpoint: the same answer on all ranks."""
        return self.keep.save_every_steps is not None and progress.step % self.keep.save_every_steps == 0

    def minutes_due(self) -> bool:
        """Whether save_every_minutes asks for one. Clocks differ: only rank 0's answer counts, and the others must be told."""
        minutes = self.keep.save_every_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def latest(self) -> Path | None:
        """The newest checkpoint that verifies, None where there is none. Raises RunFolderError where all are damaged."""
        return disk.latest(self.folder)

    def best_folder(self) -> Path | None:
        """The best epoch by the first monitored key; without validation the latest checkpoint; None where there is nothing.

        Raises RunFolderError where it is damaged: another epoch's figures must not pass for the best one's.
        """
        latest = self.latest()
        if latest is None:
            return None
        best = disk.read_state(latest / disk.STATE)["progress"]["best"] if self._best is None else self._best
        entries = next(iter(best.values()), [])
        folder = self.folder / entries[0]["folder"] if entries else latest
        try:
            disk.verified(folder)
        except (ValueError, OSError) as error:
            raise RunFolderError(f"the best checkpoint is damaged: {error}; choose another folder below {self.folder}") from error
        return folder

    def restore(self, module: nn.Module, optimizer: Any, schedule: Any, scaler: Any = None) -> Progress:
        """Loads the latest checkpoint into all of them, generators aside (restore_random), or does nothing on a fresh start.

        Raises RunFolderError where no checkpoint verifies, where it is another run's, or where names of parameters differ.
        """
        progress = Progress(self.choice)
        folder = self._on_first(lambda: disk.recover(self.folder))
        if folder is not None:
            state = disk.read_state(folder / disk.STATE)
            check_identity(folder, state["identity"], self._identity(), self.allow_world_change)
            load_module(folder, module, optimizer, state["optimizer_names"])
            optimizer.load_state_dict(parted_state(optimizer, state["optimizer"]))
            schedule.load_state_dict(state["schedule"])
            if scaler is not None and state["scaler"]:
                scaler.load_state_dict(state["scaler"])
            progress.load(state["progress"])
            self.extra, self.resumed_step = state["extra"], progress.step
            self._restore_rank(folder, state["identity"]["processes"], progress)
            if is_sharded(module) or state.get("sharded"):  # sums over processes are taken in another order
                self.exact = False
                log.warning("resumed under FSDP: whether from here on it equals a run that was never stopped is not promised")
            log.info("resumed at epoch %d, step %d, from %s", progress.epoch + 1, progress.step, folder.name)
        self._best = progress.best
        self._on_first(lambda: self._reconcile(progress))
        return progress

    def restore_random(self) -> None:
        """Puts this rank's generators where they were; called when everything that may draw has been built. Later calls do nothing."""
        if self._random is not None:
            random_state.restore(self._random)
            self._random = None

    def save(self, module: nn.Module, optimizer: Any, schedule: Any, progress: Progress, scaler: Any = None) -> None:
        """Writes step_N and brings the best epochs in line. Only at an optimizer-step boundary; called by every rank.

        Raises StorageError on all ranks where one can not write (the old checkpoint stands), NonFiniteError for NaN or infinite weights.
        """
        refuse_nonfinite(module, progress.step)
        temporary = self.folder / f".tmp-{disk.step_name(progress.step)}"
        first, sharded = self.ranks.rank == 0, is_sharded(module)
        weights = disk.weights_of(module, first) if first or sharded else {}
        state: dict[str, Any] = {
            "progress": progress.state(),
            "optimizer": whole_tree(optimizer.state_dict(), first),
            "optimizer_names": group_names(module, optimizer),
            "schedule": schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "identity": self._identity(),
            "extra": self.extra,
            "sharded": sharded,
        }
        if self._on_first(lambda: self._prepare(temporary, progress, _bytes_of([weights, state["optimizer"]]))):
            written = self.ranks.gather_objects(self._write(temporary, progress, weights, plain(state)))
            self._on_first(lambda: self._publish(temporary, progress, written))
        self._best, self._saved_at = progress.best, time.monotonic()

    def _on_first(self, work: Any) -> Any:
        """Rank 0's result on every rank; its error is raised on every rank, so that none is left waiting."""
        outcome: tuple[Any, Exception | None] = (None, None)
        if self.ranks.rank == 0:
            try:
                outcome = (work(), None)
            except OSError as error:
                outcome = (None, StorageError(self._full(error)))
            except (StorageError, RunFolderError) as error:
                outcome = (None, error)
        result, error = self.ranks.gather_objects(outcome)[0]
        if error is not None:
            raise error
        return result

    def _full(self, error: BaseException) -> str:
        free = shutil.disk_usage(next(p for p in (self.folder, *self.folder.absolute().parents) if p.exists())).free
        advice = "What was saved before still stands: free space or repair the folder's rights, then resume"
        return f"{self.folder}: not written ({error}); {free / 2**20:.0f} MiB are free. {advice}"

    def _prepare(self, temporary: Path, progress: Progress, needed: int) -> bool:
        """Makes the temporary folder; False where this position is on the disk already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        home = self.folder / disk.step_name(progress.step)
        if home.exists():
            try:
                if disk.verified(home)["epoch"] == progress.epoch:
                    self._reconcile(progress)
                    return False  # an epoch that has been closed since is another position: it is written again
            except (ValueError, OSError) as error:
                log.warning("damaged checkpoint put aside: %s", error)
                disk.put_aside(home)
        needed = int(needed * 1.05) + 2**20
        if (free := shutil.disk_usage(self.folder).free) < needed:
            raise StorageError(f"{self.folder}: a checkpoint needs {needed} bytes, {free} are free. What was saved before still stands")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        return True

    def _write(
        self, temporary: Path, progress: Progress, weights: dict[str, Tensor], state: dict[str, Any]
    ) -> tuple[dict[str, Any], str | None]:
        """Writes this rank's files; returns their manifest entries and what went wrong."""
        names = [disk.rank_file(self.ranks.rank)]
        # a rank that has resumed but not yet begun an epoch still owes its generators their state
        generators = random_state.capture() if self._random is None else self._random
        try:
            disk.write_state(temporary / names[0], {"random": generators, "sums": progress.rank_state()})
            disk.phase("rng", progress.step)
            if self.ranks.rank == 0:
                disk.write_weights(temporary / disk.MODEL, weights)
                disk.phase("model", progress.step)
                disk.write_state(temporary / disk.STATE, state)
                disk.phase("state", progress.step)
                names += [disk.MODEL, disk.STATE]
            return {name: disk.described(temporary / name) for name in names}, None
        except disk.WRITE_ERRORS as error:
            return {}, self._full(error)

    def _publish(self, temporary: Path, progress: Progress, written: list[tuple[dict[str, Any], str | None]]) -> None:
        """Manifest, rename, links, prune; or, after an error of any rank, nothing of it left."""
        try:
            if error := next((error for _, error in written if error), None):
                raise StorageError(error)
            contents = {"format": disk.FORMAT, "step": progress.step, "epoch": progress.epoch, "processes": self.ranks.processes}
            contents["config_hash"] = self.identity.get("config_hash")
            contents["files"] = {name: entry for files, _ in written for name, entry in files.items()}
            disk.write_manifest(temporary, contents)
            disk.phase("manifest", progress.step)
            disk.replace(temporary, progress.step)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._reconcile(progress)

    def _identity(self) -> dict[str, Any]:
        return plain(self.identity) | {"processes": self.ranks.processes}

    def _reconcile(self, progress: Progress) -> None:
        if self.folder.exists():
            reconcile(self.folder, progress.best, self.keep.keep_last, lambda name: disk.phase(name, progress.step))

    def _restore_rank(self, folder: Path, before: int, progress: Progress) -> None:
        rank, processes = self.ranks.rank, self.ranks.processes
        states = [disk.read_state(folder / disk.rank_file(r)) for r in range(rank, before, processes)]
        progress.load_rank([state["sums"] for state in states])
        if before == processes:
            self._random = states[0]["random"]
            return
        self.exact = False
        random_state.restart(self.identity.get("seed", 0), progress.step, rank)
        log.warning("resumed with %d processes instead of %d: from here on not equal to a run that was never stopped", processes, before)


def _bytes_of(value: Any) -> int:
    """Bytes of all tensors in nested containers."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(_bytes_of(entry) for entry in entries)
