"""What the screen says beside numbers: advice on waiting for data, and details where hydra.verbose=true asks for them."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmexpert.engine.console import Console, set_up_logging

ROW = {"train/loss_total": 2.0, "lr/radar": 1e-3, "batch_time": 0.1, "samples_per_second": 10.0}


def epochs(console, waits):
    """Runs epochs of two logged rows each through a console; waits: data_time of each row by epoch."""
    for number, pair in enumerate(waits, 1):
        for i, data_time in enumerate(pair):
            console.step(ROW | {"epoch": number, "step": 2 * number + i, "data_time": data_time}, {"loss_total": 2.0}, i + 1)
        console.epoch({"epoch": number, "step": 2 * number + 1, "train/loss_total": 2.0})


def advice(caplog):
    return [record.getMessage() for record in caplog.records if "waiting for data" in record.getMessage()]


def test_waiting_for_data_is_told_once_an_epoch_from_the_second_on(caplog):
    caplog.set_level(logging.INFO)
    epochs(Console("", 2, []), [(0.09, 0.09), (0.05, 0.03), (0.02, 0.03), (0.01, 0.06)])
    assert advice(caplog) == [f"{share} % of the time is waiting for data: raise trainer.num_workers, where there are cores for more"
                              for share in (40, 35)]  # fmt: skip


def test_at_thirty_percent_or_below_there_is_no_advice(caplog):
    caplog.set_level(logging.INFO)
    epochs(Console("", 2, []), [(0.0, 0.0), (0.03, 0.0299)])
    assert not advice(caplog)


@pytest.mark.parametrize("before, after", [(logging.DEBUG, logging.DEBUG), (logging.WARNING, logging.INFO)])
def test_the_logs_of_a_run_keep_the_level_that_verbose_has_set(before, after, tmp_path):
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    root.handlers.clear()  # pytest's own must not be closed
    try:
        root.setLevel(before)
        set_up_logging(tmp_path, 0)
        assert root.level == after
        logging.getLogger("mmexpert.part").debug("a detail")
        assert ("a detail" in (tmp_path / "log.txt").read_text()) is (after == logging.DEBUG)
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


@pytest.mark.parametrize("verbose, level", [("true", "DEBUG"), ("false", "INFO")])
def test_a_job_runs_at_the_level_that_hydra_verbose_asks_for(verbose, level, tmp_path):
    script = (
        "import logging, sys\nfrom mmexpert import train\n"
        "train.run_job = lambda *given: print('level', logging.getLevelName(logging.getLogger().level))\n"
        f"sys.argv = ['train', 'hydra.verbose={verbose}']\ntrain.main()"
    )
    root = Path(__file__).resolve().parents[2]
    given = os.environ | {"PYTHONPATH": str(root)}
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=given, capture_output=True, text=True, timeout=60)
    assert f"level {level}\n" in ended.stdout, ended.stderr
