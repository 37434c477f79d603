"""Two processes under FSDP are two under DDP: history and weights of a real run; its checkpoints are whole and resume elsewhere."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmexpert import load

pytestmark = pytest.mark.slow  # three runs of two processes and one of one: half a minute on quiet cores
ROOT = Path(__file__).resolve().parents[2]
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
SETTINGS = (  # a norm far above the limit, so that it is clipped; two micro-batches a step
    "trainer.epochs=1", "trainer.save_every_steps=1", "trainer.keep_last=9", "trainer.max_grad_norm=0.5", "trainer.accumulation=2",
)  # fmt: skip


def job(folder, overrides, name, **environment):
    """One run of this rank in a process group that stays."""
    from mmexpert.command_line import composed
    from mmexpert.config import check
    from mmexpert.training import train_run

    os.environ |= environment
    train_run(check(composed(*overrides, "name=radar")), folder / name, overrides, ())
    for key in environment:
        del os.environ[key]


def worker(rank, folder, overrides):
    from torch import distributed as dist
    from torch.distributed.tensor import DTensor

    from mmexpert.engine import checkpoint

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    shards = []
    save = checkpoint.Checkpoints.save

    def watched(self, module, *others):
        shards.extend(name for name, p in module.named_parameters() if isinstance(p, DTensor) and p.to_local().numel() < p.numel())
        save(self, module, *others)

    checkpoint.Checkpoints.save = watched
    job(folder, overrides, "ddp")
    assert not shards
    job(folder, overrides, "fsdp", **FSDP)
    (folder / f"shards_{rank}.json").write_text(json.dumps(sorted(set(shards))))
    if rank == 0:
        stop_after(folder / "fsdp", folder / "resumed", 2)
        stop_after(folder / "fsdp", folder / "alone", 2)
    dist.barrier()
    job(folder, overrides, "resumed", **FSDP)
    dist.barrier()
    dist.destroy_process_group()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads abort now and then when the interpreter takes itself apart


def stop_after(run, copy, step):
    """The run's folder as it was after a step."""
    copy.mkdir()
    for name in ("config.json", "config.yaml", "environment.json", "metrics.jsonl"):
        shutil.copy(run / name, copy / name)
    shutil.copytree(run / "checkpoints" / f"step_{step:08d}", copy / "checkpoints" / f"step_{step:08d}")
    status = json.loads((run / "status.json").read_text())
    (copy / "status.json").write_text(json.dumps(status | {"state": "stopped", "stopped": "signal"}))


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    commands = [[sys.executable, __file__, str(rank), str(folder), *tiny, *SETTINGS] for rank in range(2)]
    running = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(errors)[-3000:]
    return folder


def differences(run, other, step):
    """Largest difference of a weight, relative to the tensor's largest.

    Biases of keys are left out: softmax does not see them, their gradient is rounding alone, and Adam makes full steps of it.
    """
    found, expected = (load_file(folder / "checkpoints" / f"step_{step:08d}" / "model.safetensors") for folder in (run, other))
    assert found.keys() == expected.keys()
    names = [name for name in found if not (name.endswith("bias") and "key" in name)]
    assert len(names) > 0.9 * len(found)
    return max(float((found[name] - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1e-6)) for name in names)


def test_layers_are_sharded_and_give_the_weights_and_losses_of_ddp(runs):
    for rank in range(2):
        shards = json.loads((runs / f"shards_{rank}.json").read_text())
        assert any("text" in name and "attention" in name for name in shards) and not any("logit_scale" in name for name in shards)
    assert [differences(runs / "fsdp", runs / "ddp", step) < 1e-4 for step in (1, 2, 4)] == [True] * 3
    sharded, whole = (json.loads((runs / name / "history.json").read_text())[0] for name in ("fsdp", "ddp"))
    numbers = [key for key, value in whole.items() if isinstance(value, float) and "time" not in key and "per_second" not in key]
    numbers = [key for key in numbers if "memory" not in key]
    assert {"train/loss_total", "valid/loss_total", "valid/RSum"} <= set(numbers)
    assert {key: sharded[key] for key in numbers} == pytest.approx({key: whole[key] for key in numbers}, rel=1e-4, abs=1e-6)


def test_a_sharded_checkpoint_resumes_under_fsdp_and_is_never_called_exact(runs):
    assert differences(runs / "resumed", runs / "fsdp", 4) < 1e-4
    resumes = json.loads((runs / "resumed" / "status.json").read_text())["resumes"]
    assert [(row["step"], row["processes"], row["exact"]) for row in resumes] == [(2, 2, False)]


def test_one_process_goes_on_from_a_sharded_checkpoint_and_loads_the_model(runs, tiny):
    overrides = [*tiny, *SETTINGS]
    job(runs, [*overrides, "allow_world_change=true"], "alone")
    before, after = (json.loads((runs / name / "history.json").read_text())[0] for name in ("fsdp", "alone"))
    assert after["step"] == 4 and after["train/loss_total"] == pytest.approx(before["train/loss_total"], rel=0.1)  # other dropout
    assert json.loads((runs / "alone" / "status.json").read_text())["resumes"][0]["exact"] is False
    model, whole = load(runs / "fsdp"), load_file(runs / "fsdp" / "model" / "model.safetensors")
    best = load_file(runs / "fsdp" / "checkpoints" / "best" / "model.safetensors")
    assert (
        best.keys() - whole.keys() <= {"loss.logit_scale"}
        and whole.keys() <= best.keys()
        and all(torch.equal(whole[name], best[name]) for name in whole)
    )
    assert {f"model.{name}" for name, _ in model.model.named_parameters()} <= whole.keys()


if __name__ == "__main__":
    worker(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
