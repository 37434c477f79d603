"""mmexpert.train, its children too, with a training that takes no time: what a multirun does around it is real. No torch."""

import json
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

import mmexpert.job_queue
from mmexpert.config import NOT_HASHED
from mmexpert.engine.status import Status, config_hash, write_status
from mmexpert.types import DataError, MemoryExhaustedError


def train_run(plain: dict[str, Any], folder: Path, overrides: list[str], trust: tuple[str, ...]) -> float:
    """seed 13 fails; seed 7 has no memory at its first attempt; seed 99 waits to be stopped; else the value is 10 times the seed."""
    seed = plain["seed"]
    began = time.time()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"rank_{os.environ.get('RANK', '0')}_of_{os.environ.get('WORLD_SIZE', '1')}").touch()
    if os.environ.get("RANK", "0") != "0":  # as in the real one, the first rank alone writes the run's files
        return 10.0 * seed
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    while len(list(folder.glob("rank_*"))) < ranks:  # training gathers: the first is not done before the last begins
        time.sleep(0.05)
    (folder / "config.json").write_text(json.dumps({"config": plain, "overrides": overrides}))
    status = Status("running", config_hash(plain, NOT_HASHED))
    write_status(folder, status)
    attempt = 1 + len(list(folder.glob("attempt_*")))
    (folder / f"attempt_{attempt}").touch()
    error = None
    if seed == 13:
        error = DataError("row 13 is missing")
    elif seed == 7 and attempt == 1:
        error = MemoryExhaustedError("no memory")
    try:
        if error is not None:
            status.error = {"type": type(error).__name__, "message": str(error)}
            raise error
        time.sleep(600 if seed == 99 and attempt == 1 else 0.2)
        status.state = "done"
        metrics = {"monitor": "valid/RSum", "best_value": 10.0 * seed, "best_epoch": 1, "test/RSum": 9.0 * seed}
        (folder / "metrics.json").write_text(json.dumps(metrics))
    except BaseException:
        status.state = "failed" if error else "stopped"
        raise
    finally:
        write_status(folder, status)
    seen = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
    times = {"began": began, "left": time.time(), "trust": list(trust), "overrides": overrides, "closed": sys.stdin.read() == ""}
    (folder / "seen.json").write_text(json.dumps(seen | times))
    return 10.0 * seed


if __name__ == "__main__":
    sys.modules["mmexpert.training"] = types.SimpleNamespace(train_run=train_run)
    mmexpert.job_queue.PROGRAM = (str(Path(__file__).resolve()),)
    from mmexpert.train import main

    try:
        main()
    finally:
        sys.stderr.write(f"torch imported: {'torch' in sys.modules}\n")
