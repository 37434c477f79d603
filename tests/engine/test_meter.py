"""What is measured while training: memory now, and the largest over ranks."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rank_processes import end_rank, run_ranks, this_rank
from torch import distributed as dist

from mmexpert.engine import memory, meter
from mmexpert.engine.meter import Meter
from mmexpert.engine.runtime import Ranks

GIB = 2**30


def meter_of(ranks, kind="cpu"):
    return Meter(None, None, ranks, torch.device(kind), 1, 8, 8)


def alone():
    return Ranks(SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu")))


def test_cpu_memory_is_what_is_resident_now_not_the_peak():
    before = meter_of(alone())._times()["cpu_memory"]
    block = np.ones(2**25)  # 256 MiB, all touched
    held = meter_of(alone())._times()["cpu_memory"]
    del block
    after = meter_of(alone())._times()["cpu_memory"]
    assert held - before == pytest.approx(0.25, abs=0.05) and held - after == pytest.approx(0.25, abs=0.05)


def test_without_proc_the_peak_stands_in(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_STATM", tmp_path / "none")
    assert memory.resident_bytes() > 2**24


def test_memory_is_the_largest_over_ranks(tmp_path):
    run_ranks(__file__, 2, tmp_path)
    assert [(tmp_path / f"rank_{rank}").read_text() for rank in (0, 1)] == ["3.0 5.0", "3.0 5.0"]


def _rank() -> None:
    rank, processes, out = this_rank()
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(processes)}
    dist.init_process_group("gloo")
    ranks = Ranks(SimpleNamespace(process_index=rank, num_processes=processes, device=torch.device("cpu")))
    meter.resident_bytes = lambda: (3 - rank) * GIB
    torch.cuda.max_memory_allocated, torch.cuda.reset_peak_memory_stats = lambda device: (4 + rank) * GIB, lambda device: None
    cpu, gpu = meter_of(ranks)._times()["cpu_memory"], meter_of(ranks, "cuda")._times()["gpu_memory"]
    (out / f"rank_{rank}").write_text(f"{cpu} {gpu}")
    end_rank()


if __name__ == "__main__":
    _rank()
