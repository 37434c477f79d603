"""Tasks that srun has started know their rank before the command reads it."""

import os
import subprocess
import sys

import pytest

from mmexpert import train
from mmexpert.engine.slurm import adopt_slurm
from mmexpert.engine.status import Status, write_status

TASK = {"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "1234567", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7"}


@pytest.mark.parametrize(
    "given, added",
    [
        (TASK, {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": str(20000 + 1234567 % 20000)}),
        (TASK | {"MASTER_ADDR": "n1", "MASTER_PORT": "5"}, {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}),
        (TASK | {"RANK": "0"}, {}),  # of torchrun, which one task a machine has started
        (TASK | {"SLURM_NTASKS": "1"}, {}),
        ({"SLURM_NTASKS": "4"}, {}),  # of salloc's shell: no task of srun's
        ({}, {}),
    ],
)
def test_a_task_of_srun_is_a_rank_unless_a_launcher_has_said_so(monkeypatch, given, added):
    monkeypatch.setattr(os, "environ", dict(given))
    adopt_slurm()
    assert os.environ == given | added


@pytest.mark.parametrize("task, aside", [("0", True), ("1", False), ("3", False)])
def test_under_srun_the_first_task_alone_puts_an_earlier_run_aside(monkeypatch, tmp_path, task, aside):
    folder = tmp_path / "run"
    folder.mkdir()
    write_status(folder, Status("done", "hash"))
    monkeypatch.setattr(os, "environ", TASK | {"SLURM_PROCID": task})
    monkeypatch.setattr(sys, "argv", ["train"])
    monkeypatch.setattr(train, "leave_group", lambda code: None)
    monkeypatch.setattr(train, "launch", lambda application: train.prepare_folder(folder, {"resume": "never"}))
    train.main()
    assert (tmp_path / "run.1").exists() is aside and folder.exists() is not aside


def test_the_rank_is_known_without_torch():
    script = "import sys; from mmexpert.engine.slurm import adopt_slurm; adopt_slurm(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
