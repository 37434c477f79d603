"""Faults of scripts/torture.py in numbers and services: NaN and Inf, memory, trackers. Each returns how many tries survived."""

from collections.abc import Callable

import forked_runs
from torture_bench import Bench, finish, finite

AT = 9  # the step that is spoilt: in mid-epoch


def spoil_loss(value: float, step: int = AT) -> Callable[[], None]:
    """The loss is value at a step."""

    def plant() -> None:
        from mmexpert.engine.objective import Objective

        forward, calls = Objective.forward, [0]

        def spoilt(self, batch):
            losses, pair = forward(self, batch)
            calls[0] += 1
            return (losses | {"loss_total": losses["loss_total"] * value} if calls[0] == step else losses), pair

        Objective.forward = spoilt

    return plant


def spoil_gradient(value: float) -> Callable[[], None]:
    """The loss is finite, the gradient of the text tower is value."""

    def plant() -> None:
        from mmexpert.engine.objective import Objective

        forward, calls = Objective.forward, [0]

        def spoilt(self, batch):
            calls[0] += 1
            if calls[0] == AT:
                next(iter(self.model.encoders["text"].parameters())).register_hook(lambda gradient: gradient * value)
            return forward(self, batch)

        Objective.forward = spoilt

    return plant


def spoil_sample(value: float) -> Callable[[], None]:
    """One sample of the batch that is loaded at a step holds value."""

    def plant() -> None:
        from mmexpert.data.radar_sim import RadarSim

        sample, draws = RadarSim.sample, [0]

        def spoilt(self, record, epoch, repeat):
            found = sample(self, record, epoch, repeat)
            draws[0] += epoch >= 0
            if draws[0] == 16 * AT - 5 and epoch >= 0:
                found["radar"]["doppler_time"][0, 0] = value
            return found

        RadarSim.sample = spoilt

    return plant


def out_of_memory() -> None:
    """The device has no memory left at a step."""
    import torch

    from mmexpert.engine.objective import Objective

    forward, calls = Objective.forward, [0]

    def spoilt(self, batch):
        calls[0] += 1
        if calls[0] == AT:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return forward(self, batch)

    Objective.forward = spoilt


def nonfinite(bench: Bench) -> list[bool]:
    """NaN and Inf in sample, loss and gradient: code 6 with a report, checkpoints finite, then exact."""
    survived = []
    places = {"sample": spoil_sample, "loss": spoil_loss, "gradient": spoil_gradient}
    for place, spoil in places.items():
        for value in (float("nan"), float("inf")):
            name = f"{place}_{value}"
            code = bench.start(name, "trainer.num_workers=0", before=spoil(value)).wait()
            report = (bench.run(name) / f"nonfinite_step_{AT}.json").exists()
            print(f"{place} {value}: exit {code}, report {report}")
            survived.append(code == 6 and report and finite(bench.run(name)) and bench.ends_equal(name))
    return survived


def nonfinite_skipped(bench: Bench) -> list[bool]:
    """trainer.nonfinite=skip leaves one update out and goes on; everything saved is finite."""
    code = bench.start("skip", "trainer.nonfinite=skip", before=spoil_loss(float("nan"))).wait()
    return [code == 0 and "update left out, 1 of 10" in bench.log() and finite(bench.run("skip"))]


def nonfinite_rank(bench: Bench) -> list[bool]:
    """NaN on one rank of two: both stop with code 6."""
    survived = []
    for rank in (0, 1):
        name = f"nan_on_{rank}"
        codes = finish(forked_runs.ranks(bench.folder, bench.overrides(name), 2, {rank: spoil_loss(float("nan"))}), 60)
        print(f"NaN on rank {rank}: exits {codes}")
        survived.append(codes == [6, 6] and finite(bench.run(name)) and bench.ends_equal(name, processes=2))
    return survived


def memory(bench: Bench) -> list[bool]:
    """Out of memory: code 7 with remedies; on one rank of two the other leaves with 8."""
    alone = bench.start("memory", before=out_of_memory).wait() == 7 and "trainer.accumulation" in bench.log() and bench.ends_equal("memory")
    survived = [alone]
    for rank in (0, 1):
        name = f"memory_{rank}"
        codes = finish(forked_runs.ranks(bench.folder, bench.overrides(name), 2, {rank: out_of_memory}), 60)
        print(f"out of memory on rank {rank}: exits {codes}")
        survived.append(codes[rank] == 7 and codes[1 - rank] == 8 and bench.ends_equal(name, processes=2))
    return survived


def tracker(bench: Bench) -> list[bool]:
    """A tracker that raises at its start, at every log or at its end: one warning, the same numbers."""

    def raising(method: str) -> Callable[[], None]:
        def plant() -> None:
            from accelerate import tracking

            def fail(*_, **__):
                raise ConnectionError("the tracker is away")

            setattr(tracking.TensorBoardTracker, method, fail)

        return plant

    survived = []
    for method in ("__init__", "log", "finish"):
        name = f"tracker_{method.strip('_')}"
        code = bench.start(name, "tracker=tensorboard", before=raising(method)).wait()
        survived.append(code == 0 and "tracker tensorboard is off" in bench.log() and bench.ends_equal(name, "tracker=tensorboard"))
    return survived
