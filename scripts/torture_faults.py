"""Faults of scripts/torture.py in one run: stops, kills, storage, clocks, names. Each returns how many tries survived."""

import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import forked_runs
from kill_campaign import outcome
from torture_bench import STEPS, Bench, finish, obey_rights, whole, workers_of

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
ODD = ("a b", "中文", "a=b", "a,b", "it's [x] (1)")


def every_step(bench: Bench) -> list[bool]:
    """One run, killed after the save of each of its steps."""
    died = [bench.start("every", MMEXPERT_KILL_AT=f"prune:{step}").wait() == -9 for step in range(1, STEPS + 1)]
    equal = bench.ends_equal("every")
    return [one and equal for one in died]


def signals(bench: Bench) -> list[bool]:
    """TERM, INT, USR1, USR2 to the process and its two loader workers."""
    survived = []
    for number in SIGNALS:
        name = f"signal_{number.name}"
        child = bench.start(name, "trainer.num_workers=2")
        bench.await_step(name, 8, child)
        children, began = workers_of(child.pid), time.monotonic()
        child.signal_group(number)
        code = child.wait(60)
        print(f"{number.name}: exit {code} after {time.monotonic() - began:.1f} s")
        gone = not any(Path(f"/proc/{pid}/status").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text() for pid in children)
        survived.append(code == 128 + number and gone and bench.status(name)["state"] == "stopped" and bench.ends_equal(name))
    return survived


def worker_killed(bench: Bench) -> list[bool]:
    """SIGKILL for a loader worker: code 8 with the samples, then exact."""
    survived = []
    for trial in range(4 if bench.full else 2):
        name = f"worker_{trial}"
        child = bench.start(name, "trainer.num_workers=2")
        bench.await_step(name, 5 + trial, child)
        for pid in workers_of(child.pid)[:1]:
            os.kill(pid, signal.SIGKILL)
        survived.append(child.wait(60) == 8 and "loader worker" in bench.log() and bench.ends_equal(name))
    return survived


def rank_killed(bench: Bench) -> list[bool]:
    """SIGKILL for one rank of two: the other leaves within 60 s."""
    survived = []
    for dead in (0, 1):
        name = f"rank_{dead}"
        children = forked_runs.ranks(bench.folder, bench.overrides(name), 2)
        bench.await_step(name, 7, children[0])
        children[dead].kill()
        began = time.monotonic()
        code = children[1 - dead].wait(60)
        print(f"rank {dead} killed: the other left with {code} after {time.monotonic() - began:.1f} s")
        survived.append(code == 8 and bench.ends_equal(name, processes=2))
    return survived


def disk_full(bench: Bench) -> list[bool]:
    """Writes fail beyond a size: code 5, what was saved stands whole, nothing temporary is left."""
    from mmexpert.engine import step_folder

    survived = []
    for trial, kilobytes in enumerate((100, 300, 1000) if bench.full else (100, 400)):
        name = f"full_{trial}"
        bench.start(name, MMEXPERT_KILL_AT="prune:8").wait()
        checkpoints = bench.run(name) / "checkpoints"
        limit = kilobytes * 1024

        def plant(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        code = bench.start(name, "trainer.num_workers=0", before=plant).wait()  # workers' shared memory would be limited too
        whole_one = step_folder.latest(checkpoints) is not None and not list(checkpoints.glob(".tmp-step*"))
        survived.append(code == 5 and whole_one and bench.ends_equal(name))
    return survived


def read_only(bench: Bench) -> list[bool]:
    """A folder without the right to write: code 5 before the model is built, and nothing is lost."""

    bench.start("readonly", MMEXPERT_KILL_AT="prune:8").wait()
    outputs = bench.folder / "outputs"
    modes = {path: path.stat().st_mode for path in [outputs, *outputs.rglob("*")] if path.is_dir()}
    for path in modes:
        path.chmod(0o555)
    code = bench.start("readonly", before=obey_rights).wait()
    new = bench.start("readonly_new", before=obey_rights).wait()
    for path, mode in modes.items():
        path.chmod(mode)
    return [code == 5 and bench.ends_equal("readonly"), new == 5]


def races(bench: Bench) -> list[bool]:
    """Two runs that start in one folder at once: one goes on, the other is told who holds it."""
    survived = []
    for trial in range(20):
        both = [bench.start(f"race_{trial}", "trainer.max_steps=3", "final_parts=[]") for _ in range(2)]
        survived.append(sorted(finish(both)) == [0, 4])
        shutil.rmtree(bench.folder / "outputs" / f"race_{trial}")
    return survived


def clock_back(bench: Bench) -> list[bool]:
    """The clock goes back an hour at every look: no negative time, the same numbers."""
    real, looks = time.time, [0]

    def backwards() -> float:
        looks[0] += 1
        return real() - 3600 * looks[0]

    def plant() -> None:
        time.time = backwards

    code = bench.start("clock", before=plant).wait()
    history = (bench.run("clock") / "history.json").read_text()
    return [code == 0 and bench.ends_equal("clock") and 'time": -' not in history and bench.status("clock")["seconds"] >= 0]


def flipped_bits(bench: Bench) -> list[bool]:
    """One bit of one file of the newest checkpoint: it is passed over for the one before."""
    import logging

    from mmexpert.engine import step_folder

    logging.disable(logging.WARNING)
    whole(bench.folder, bench.clips, 1)
    checkpoints, rng, survived = bench.run("whole") / "checkpoints", random.Random(0), []
    newest, before = step_folder.step_folders(checkpoints)[::-1][:2]
    for trial in range(100):
        path = sorted(newest.iterdir())[trial % len(list(newest.iterdir()))]
        content = path.read_bytes()
        torn = bytearray(content)
        torn[rng.randrange(len(torn))] ^= 1 << rng.randrange(8)
        path.write_bytes(torn)
        survived.append(step_folder.latest(checkpoints) == before)
        path.write_bytes(content)
    return survived


def odd_names(bench: Bench) -> list[bool]:
    """Folders and run names with blanks, =, commas, brackets and Chinese."""
    survived = []
    for odd in ODD:
        folder = bench.folder / odd
        folder.mkdir()
        shutil.copytree(bench.clips, folder / "cache of clips")
        other = Bench(folder, folder / "cache of clips", bench.expected, bench.full)
        quoted = odd.replace("'", "\\'")
        overrides = [f"name='{quoted}'" if one.startswith("name=") else one for one in other.overrides("odd")]
        overrides = [
            f"dataset.cache_dir='{folder / 'cache of clips'}'".replace(odd, quoted) if "cache_dir" in one else one for one in overrides
        ]
        codes = [forked_runs.train(folder, overrides, MMEXPERT_KILL_AT=kill).wait() for kill in ("rename:9", "")]
        runs = [path for path in (folder / "outputs" / odd).glob("*") if path.is_dir()]
        survived.append(codes == [-9, 0] and len(runs) == 1 and outcome(runs[0]) == bench.expected[1])
    return survived
