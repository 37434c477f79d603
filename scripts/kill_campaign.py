"""SIGKILL at each phase of a save and at random moments, by one process and by two; the run must end as if never touched.

Compared: weights of every kept checkpoint, history (times aside), best list, metrics. The last line reads `N kills, 0 mismatches`.

    python scripts/kill_campaign.py                     # every phase and 10 random moments, each with 1 and 2 processes: about 8 minutes
    python scripts/kill_campaign.py --kills 100         # random moments per number of processes
"""

import argparse
import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PHASES = ("rng", "model", "state", "manifest", "rename", "links", "prune")
STEPS, PER_EPOCH = 24, 6
RUN = [
    "dataset.train=96", "dataset.valid=32", "dataset.test=32", "trainer.batch_size=16", f"trainer.epochs={STEPS // PER_EPOCH}",
    "trainer.num_workers=2", "trainer.save_every_steps=1", "trainer.save_top_k=2", "trainer.early_stopping.patience=3",
    "encoder.radar.width=16", "model.projection_dim=32", "encoder.text.bert.width=32",
    "encoder/radar/fusion=concat", "encoder.radar.fusion.view_dropout=0.3",
]  # fmt: skip


class Campaign:
    """Starts, kills and compares runs of one number of processes."""

    def __init__(self, folder: Path, processes: int, seed: int) -> None:
        self.folder, self.processes, self.rng = folder, processes, random.Random(f"{seed} {processes}")
        self.kills = self.mismatches = 0
        began = time.monotonic()
        self.expected = self.outcome(self.finish("whole"))
        self.duration = time.monotonic() - began

    def start(self, name: str, kill_at: str = "") -> list[subprocess.Popen]:
        """The run's processes; kill_at is phase:step."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = []
        for rank in range(self.processes):
            environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MMEXPERT_KILL_AT": kill_at}
            if self.processes > 1:
                environment |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(self.processes),
                    "LOCAL_WORLD_SIZE": str(self.processes),
                }
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            command = [sys.executable, "-m", "mmexpert.train", *RUN, f"name={name}"]
            log = open(self.folder / f"{name}_rank{rank}.log", "a")  # noqa: SIM115  lives as long as the process
            started.append(subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True))
        return started

    def wait(self, processes: list[subprocess.Popen], seconds: float = 600) -> bool:
        """True when all ended well; once one has died, or the time is up, the others are killed as well."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            codes = [process.poll() for process in processes]
            if all(code == 0 for code in codes):
                return True
            if any(code not in (None, 0) for code in codes):
                break
            time.sleep(0.02)
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        return False

    def finish(self, name: str) -> Path:
        """Runs to the end. Exits 1 with the log's end where the run fails by itself."""
        if not self.wait(self.start(name)):
            sys.exit(f"{name} failed:\n" + (self.folder / f"{name}_rank0.log").read_text()[-3000:])
        return next(path for path in (self.folder / "outputs" / name).iterdir() if path.is_dir())

    def compare(self, name: str) -> None:
        """Finishes a run that was killed and compares it."""
        found = self.outcome(self.finish(name))
        differing = [key for key in self.expected if found.get(key) != self.expected[key]]
        self.mismatches += bool(differing)
        print(f"{self.processes} process(es), {name}: {'equal' if not differing else f'differs in {differing}'}", flush=True)

    def outcome(self, run: Path) -> dict[str, object]:
        """What must be the same."""
        checkpoints = run / "checkpoints"
        kept = sorted(path for path in checkpoints.iterdir() if path.is_dir() and not path.is_symlink())
        history = [
            {key: value for key, value in row.items() if "time" not in key} for row in json.loads((run / "history.json").read_text())
        ]
        metrics = json.loads((run / "metrics.json").read_text())
        return {
            "kept": [path.name for path in kept],
            "weights": {path.name: hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest() for path in kept},
            "links": {link: os.readlink(checkpoints / link) for link in ("last", "best")},
            "history": history,
            "metrics": metrics,
            "predictions": (run / "predictions.csv").read_text(),
        }

    def phases(self) -> None:
        """One run, killed in each phase of a save at ever later steps, mid-epoch and at epoch ends."""
        steps = sorted(self.rng.sample(range(2, STEPS), len(PHASES) - 2) + [PER_EPOCH, 2 * PER_EPOCH])[: len(PHASES)]
        for phase, step in zip(PHASES, sorted(set(steps)), strict=False):
            died = not self.wait(self.start("phases", f"{phase}:{step}"))
            self.kills += died
            print(f"{self.processes} process(es): killed in phase {phase} of step {step}: {died}", flush=True)
        self.compare("phases")

    def moments(self, kills: int) -> None:
        """Runs killed at random moments between start and end, begun anew when one gets through."""
        done, number = 0, 0
        while done < kills:
            name = f"moments_{number}"
            died = True
            while died and done < kills:
                died = not self.wait(self.start(name), self.rng.uniform(0.3, 0.95) * self.duration)
                done += died
            self.compare(name)
            number += 1
        self.kills += done


def main() -> None:
    """Runs the campaign."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="random moments per number of processes")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    kills = mismatches = 0
    with tempfile.TemporaryDirectory() as folder:
        for processes in given.processes:
            home = Path(folder) / str(processes)
            home.mkdir()
            campaign = Campaign(home, processes, given.seed)
            campaign.phases()
            campaign.moments(given.kills)
            kills, mismatches = kills + campaign.kills, mismatches + campaign.mismatches
    print(f"{kills} kills, {mismatches} mismatches")
    sys.exit(bool(mismatches))


if __name__ == "__main__":
    main()
