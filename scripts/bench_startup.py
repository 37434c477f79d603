"""Start-up: `--help` and `--cfg job` of mmexpert.train against a bare Hydra compose of the same configuration, and a run up to its first
step, data cached, against a script that imports the same libraries.

Fresh interpreters, interleaved, medians of CPU seconds; exit 1 where torch is imported for the first two.

    python scripts/bench_startup.py --rounds 5
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BARE = """
import sys
from hydra import compose, initialize_config_dir
from mmexpert.command_line import register
register()
with initialize_config_dir(version_base="1.3", config_dir={conf!r}):
    compose("train")
"""
OURS = """
import sys
from mmexpert.train import main
sys.argv = ["mmexpert.train", *{arguments!r}]
try:
    main()
finally:
    assert "torch" not in sys.modules, "torch was imported"
"""
FIRST_STEP = """
import json, os, pathlib, sys
from mmexpert.engine import accumulate
from mmexpert.train import main
def stop(*_):
    names = [name for name in sys.modules if name.split(".")[0] not in ("mmexpert", "hydra_plugins", "__main__")]
    pathlib.Path("modules.json").write_text(json.dumps(names))
    os._exit(0)  # what a run does at its end is not start-up
accumulate.Gradients.__call__ = stop
sys.argv = ["mmexpert.train", "dataset.train=64", "dataset.valid=32", "dataset.test=32", "trainer.num_workers=0", "resume=never"]
main()
"""
IMPORTS = """
import contextlib, importlib, json, pathlib
for name in json.loads(pathlib.Path("modules.json").read_text()):
    with contextlib.suppress(ImportError, AttributeError):  # names that libraries make up, such as torch.ops
        importlib.import_module(name)
"""
MORE_S = 1.0  # seconds that a run may take longer to its first step than its libraries alone


def cpu_seconds(script: str, folder: str) -> float:
    """CPU seconds of a fresh interpreter that runs the script."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="as without: there is one size")
    parser.add_argument("--out", type=Path, help="the rows as JSON too")
    given = parser.parse_args()
    rounds, rows = given.rounds, []
    scripts = {
        "bare compose": BARE.format(conf=str(ROOT / "conf")),
        "--help": OURS.format(arguments=["--help"]),
        "--cfg job": OURS.format(arguments=["--cfg", "job"]),
        "first step": FIRST_STEP,
        "imports": IMPORTS,
    }
    times: dict[str, list[float]] = {name: [] for name in scripts}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds + 1):  # the first round warms the file cache, simulates the clips and writes modules.json
            for name, script in scripts.items():
                spent = cpu_seconds(script, folder)
                if turn:
                    times[name].append(spent)
    bare = statistics.median(times["bare compose"])
    print(f"Python {platform.python_version()}, {rounds} rounds, CPU seconds")
    print("case | ours | bare compose | ratio | goal | met")
    for name in ("--help", "--cfg job"):
        ours = statistics.median(times[name])
        met = "met" if ours <= 1.3 * bare else "missed"
        rows.append({"case": name, "ours_s": ours, "peer_s": bare, "ratio": bare / ours, "goal": "<= 1.3x", "met": met})
        print(f"{name} | {ours:.2f} | {bare:.2f} | {ours / bare:.2f} | <= 1.3 | {'yes' if ours <= 1.3 * bare else 'missed'}")
    ours, peer = (statistics.median(times[name]) for name in ("first step", "imports"))
    met = "met" if ours - peer <= MORE_S else "missed"
    goal = f"<= {MORE_S:g} s more"
    rows.append({"case": "first step, against imports", "ours_s": ours, "peer_s": peer, "ratio": peer / ours, "goal": goal, "met": met})
    print(f"first step, data cached, against imports alone | {ours:.2f} | {peer:.2f} | {ours - peer:+.2f} s | {goal} | {met}")
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
