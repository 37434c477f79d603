"""Advice on time spent waiting for data: once an epoch, where it is too much."""

import logging
from typing import Any

log = logging.getLogger(__name__)
_LIMIT = 0.3  # share of the time


class Waiting:
    """Sums what the logged rows of an epoch say of it. The first epoch is left out: workers start and caches fill."""

    def __init__(self) -> None:
        self.waited = self.spent = 0.0

    def add(self, row: dict[str, Any]) -> None:
        """A logged step: s per optimizer step since the last row, batch_time in all, data_time of it waiting."""
        if row["epoch"] > 1:
            self.waited, self.spent = self.waited + row["data_time"], self.spent + row["batch_time"]

    def tell(self) -> None:
        """The epoch has ended."""
        if self.waited > _LIMIT * self.spent:
            share = 100 * self.waited / self.spent
            log.info("%.0f %% of the time is waiting for data: raise trainer.num_workers, where there are cores for more", share)
        self.waited = self.spent = 0.0
