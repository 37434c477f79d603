"""Everything that can go wrong with a run, done to it: a line a fault with tries, survived and lost; exit code 1 when anything is lost.

python scripts/torture.py --quick                  # 12 minutes on 2 cores
python scripts/torture.py --full                   # hours: 200 kills a task, every option of every group
python scripts/torture.py --only signals races     # some faults alone; --write FILE.md: the table as a file
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import broken_files
import forked_runs
import kill_campaign
import torture_faults as faults
import torture_numbers as numbers
from torture_bench import Bench, whole

TITLES = {
    "kills_radar": "SIGKILL, radar, 1 process",
    "kills_ranks": "SIGKILL, radar, 2 processes",
    "kills_hip": "SIGKILL, hip in three folds",
    "kills_cir": "SIGKILL, CIR stage two",
    "all_options": "SIGKILL, every option",
    "every_step": "stopped after every step",
    "signals": "TERM, INT, USR1, USR2 to the group",
    "worker_killed": "a loader worker killed",
    "rank_killed": "a rank killed",
    "disk_full": "disk full",
    "read_only": "read-only folder",
    "nonfinite": "NaN, Inf in sample, loss, gradient",
    "nonfinite_skipped": "NaN with nonfinite=skip",
    "nonfinite_rank": "NaN on one rank",
    "memory": "out of memory",
    "tracker": "a tracker that raises",
    "races": "two runs, one folder",
    "clock_back": "clock set back",
    "flipped_bits": "a flipped bit in a checkpoint",
    "broken_data": "broken data files",
    "odd_names": "odd path names",
}
LANES = 2  # faults tried at a time


@dataclass
class Row:
    """One fault of the table; cpu: processor seconds of all its processes, which a busy machine does not change."""

    fault: str
    tries: int
    survived: int
    seconds: float
    cpu: float


def kills(task: str, processes: int, quick: int) -> Callable[[Bench], list[bool]]:
    """Every phase of a save and so many random moments (200 with --full)."""

    def campaign(bench: Bench) -> list[bool]:
        one = kill_campaign.Campaign(bench.folder, kill_campaign.TASKS[task], processes, 0)
        one.phases()
        one.moments(200 if bench.full else quick)
        return [True] * (one.kills - one.mismatches) + [False] * one.mismatches

    return campaign


def all_options(bench: Bench) -> list[bool]:
    """One kill an option; with --full alone."""
    killed, mismatches = kill_campaign.all_options(bench.folder, 0) if bench.full else (0, 0)
    return [True] * (killed - mismatches) + [False] * mismatches


def broken_data(bench: Bench) -> list[bool]:
    """Each file of the corpus alone in a sound data set: an error of the project that names it."""
    return [broken_files.reported(case, bench.folder / str(number)) for number, case in enumerate(broken_files.CORPUS)]


FAULTS: dict[str, Callable[[Bench], list[bool]]] = {
    "kills_radar": kills("radar", 1, 12),
    "kills_ranks": kills("radar", 2, 8),
    "kills_hip": kills("hip", 1, 8),
    "kills_cir": kills("cir", 1, 10),
    "all_options": all_options,
    "broken_data": broken_data,
    **{name: getattr(faults, name) for name in ("every_step", "signals", "worker_killed", "rank_killed", "disk_full", "read_only")},
    **{name: getattr(numbers, name) for name in ("nonfinite", "nonfinite_skipped", "nonfinite_rank", "memory", "tracker")},
    **{name: getattr(faults, name) for name in ("races", "clock_back", "flipped_bits", "odd_names")},
}


def attempt(name: str, bench: Bench) -> None:
    """Tries a fault and leaves its row in result.json; what raises is a try that was lost."""
    began = time.monotonic()
    try:
        tried = FAULTS[name](bench)
    except (Exception, SystemExit) as error:  # noqa: BLE001  a fault of the fault is no success
        print(f"{name}: {type(error).__name__}: {error}")
        tried = [False]
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    row = Row(name, len(tried), sum(tried), time.monotonic() - began, sum(one.ru_utime + one.ru_stime for one in used))
    (bench.folder / "result.json").write_text(json.dumps(asdict(row)))


def line(row: Row) -> str:
    """A row as Markdown."""
    title = TITLES.get(row.fault, row.fault)
    return f"| {title:36s} | {row.tries:5d} | {row.survived:8d} | {row.tries - row.survived:4d} | {row.seconds:5.0f} | {row.cpu:5.0f} |"


def table(rows: list[Row]) -> str:
    """fault, tries, survived, lost, seconds, as Markdown."""
    sums = [sum(getattr(row, name) for row in rows) for name in ("tries", "survived", "seconds", "cpu")]
    head = [f"| {'fault':36s} | tries | survived | lost |     s | CPU s |", f"|{'-' * 38}|------:|---------:|-----:|------:|------:|"]
    return "\n".join([*head, *map(line, rows), line(Row("total", *sums))])


def run_all(names: list[str], folder: Path, full: bool) -> list[Row]:
    """Tries the faults, LANES at a time, each in a process and folder of its own; a line as each ends."""
    folder.chmod(0o755)  # the read-only fault looks at it as another user
    clips = folder / "clips"
    expected = {processes: whole(folder / f"whole_{processes}", clips, processes) for processes in (1, 2)}
    waiting, running, rows = list(names), {}, []
    while waiting or running:
        while waiting and len(running) < LANES:
            name = waiting.pop(0)
            home = folder / name
            home.mkdir()
            bench = Bench(home, clips, expected, full)
            running[name] = forked_runs.fork(home, home / "fault.log", {}, lambda name=name, bench=bench: attempt(name, bench))
        for name, child in list(running.items()):
            if child.poll() is not None:
                del running[name]
                result = folder / name / "result.json"
                rows.append(Row(**json.loads(result.read_text())) if result.exists() else Row(name, 1, 0, 0, 0))
                print(line(rows[-1]), flush=True)
                if rows[-1].survived < rows[-1].tries:
                    print((folder / name / "fault.log").read_text()[-2000:], flush=True)
        time.sleep(0.05)
    return sorted(rows, key=lambda row: list(TITLES).index(row.fault))


def main() -> None:
    """Prints the table; exit code 1 when anything is lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the default")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=None)
    parser.add_argument("--keep", type=Path, default=None, help="a new folder for all runs and logs, kept")
    parser.add_argument("--write", type=Path, default=None, help="a Markdown file for the table (docs/torture.md)")
    given, began = parser.parse_args(), time.monotonic()
    names = given.only or [name for name in FAULTS if given.full or name != "all_options"]
    forked_runs.warm()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = run_all(names, folder.resolve(), given.full)
    lost = sum(row.tries - row.survived for row in rows)
    kills = sum(row.tries for row in rows if row.fault.startswith("kills_"))
    minutes = (time.monotonic() - began) / 60
    what = f"{sum(row.tries for row in rows)} tries, {lost} lost; {kills} of them SIGKILL in a save or at random; {minutes:.1f} minutes"
    print(f"\n{table(rows)}\n\n{what}")
    if given.write:
        command = " ".join(["python", "scripts/torture.py", *sys.argv[1:]])
        given.write.write_text(f"# What was done to runs, and what was lost\n`{command}`: {what}.\n\n{table(rows)}\n")
    sys.exit(lost > 0)


if __name__ == "__main__":
    main()
