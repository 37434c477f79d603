"""Stop signals over a whole run: noted whenever they come, obeyed where nothing is left half done."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from mmexpert.engine.runtime import Ranks

log = logging.getLogger(__name__)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Stops:
    """The handlers of a run, over all its folds and phases. signal: the last one noted, 0 where none came.

    A noted signal is SystemExit with 128 + its number: at once while a lone process builds (at_once), else where the run next asks
    (end; training asks at every step, engine/watch.py), at the latest when the block is left: no further fold or job begins.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.signal = ranks, 0
        self._building = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stops":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        try:
            if error is None:
                self.end()
        finally:
            if callable(before := self._before.get(self.signal)) and before is not signal.default_int_handler:
                before(self.signal, None)  # a handler that was there first (submitit's) is called, after all saves

    def _note(self, number: int, _: object) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt  # a second Ctrl-C waits for nothing
        self.signal = number
        if self._building:
            raise SystemExit(128 + number)

    def end(self) -> None:
        """SystemExit where this process or another was asked to stop. Every rank calls it, where all have left what they did whole."""
        number = self.signal
        if self.ranks.processes > 1:
            flag = torch.tensor(number, device=self.ranks.accelerator.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            number = int(flag)
        if number:
            log.info("%s: the run ends here", signal.Signals(number).name)
            raise SystemExit(128 + number)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block that may be left at any line, such as the building of a data set. Of a group no rank leaves alone: the others would
        wait for it."""
        try:
            self._building = self.ranks.processes == 1
            if self._building:
                self.end()  # what came just before
            yield
        finally:
            self._building = False
