"""Multiruns from the shell: every launcher, failures, stops, the same command again, dry runs. Training is tests/sweep_driver.py's."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DRIVER = [sys.executable, str(ROOT / "tests/sweep_driver.py")]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
ENVIRONMENT |= {"PYTHONPATH": str(ROOT)}


def sweep(folder: Path, *overrides: str, **extra: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*DRIVER, "-m", *overrides], cwd=folder, env=ENVIRONMENT | extra, capture_output=True, text=True, timeout=280, input="typed\n"
    )


def seen(folder: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted((folder / "outputs").glob("*/*/seen.json"))}


def states(folder: Path) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_text())["state"] for path in (folder / "outputs").glob("*/*/status.json")}


def test_the_queue_gives_each_job_a_device_and_a_log_and_the_same_command_runs_only_what_is_missing(tmp_path):
    command = ["seed=1,2,3,13", "name=q", "sweep=gpu_queue", "hydra.launcher.gpus=[6,7]", "resume=never", "trust=[theirs]"]
    first = sweep(tmp_path, *command)
    assert first.returncode == 10 and "torch imported: False" in first.stderr
    assert "1 of 4 jobs failed" in first.stderr and "row 13 is missing" in first.stderr and "outputs/q/seed=13" in first.stderr
    ran = seen(tmp_path)
    assert set(ran) == {"seed=1", "seed=2", "seed=3"} and {row["CUDA_VISIBLE_DEVICES"] for row in ran.values()} == {"6", "7"}
    assert all(row["closed"] and row["trust"] == ["theirs"] and "sweep=gpu_queue" not in row["overrides"] for row in ran.values())
    for name, row in ran.items():
        assert f"=== gpu {row['CUDA_VISIBLE_DEVICES']}, attempt 1, " in (tmp_path / f"outputs/q/{name}/console.log").read_text()
    assert (tmp_path / "outputs/q/sweep.csv").exists() and "row 13 is missing" in (tmp_path / "outputs/q/sweep.html").read_text()
    again = sweep(tmp_path, *[one for one in command if "resume" not in one])
    assert again.stdout.count("finished before") == 3 and "4 jobs, 1 to be run" in again.stdout and seen(tmp_path) == ran


def test_the_queue_and_the_basic_launcher_leave_the_same_metrics(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    command = ["seed=1,2", "name=same"]
    basic, queue = sweep(tmp_path / "a", *command), sweep(tmp_path / "b", *command, "sweep=gpu_queue", "hydra.launcher.gpus=[]")
    assert basic.returncode == queue.returncode == 0, basic.stderr + queue.stderr
    for name in ("seed=1", "seed=2"):
        texts = [(tmp_path / place / "outputs/same" / name / "metrics.json").read_text() for place in "ab"]
        assert texts[0] == texts[1]
    assert basic.stdout.splitlines()[-2:] == queue.stdout.splitlines()[-2:] and "done | seed=1 | 10 | outputs/same/seed=1" in queue.stdout


def test_a_stopped_queue_starts_nothing_more_and_the_same_command_ends_it(tmp_path):
    command = [*DRIVER, "-m", "seed=99,1", "sweep=gpu_queue", "hydra.launcher.gpus=[]", "hydra.launcher.grace_s=20"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 40
    while not (tmp_path / "outputs/radar/seed=99/attempt_1").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=40)
    assert process.returncode == 143 and "1 jobs have not begun" in out
    assert not (tmp_path / "outputs/radar/seed=1").exists()
    assert subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, stdin=subprocess.DEVNULL, timeout=60).returncode == 0
    assert states(tmp_path) == {"seed=99": "done", "seed=1": "done"}


def test_jobs_that_differ_in_keys_that_change_no_number_are_one(tmp_path):
    ended = sweep(tmp_path, "trainer.num_workers=0,2", "seed=1", "sweep=gpu_queue", "hydra.launcher.gpus=[]", "hydra.launcher.cpu_slots=2")
    assert ended.returncode == 0 and "2 jobs, 1 to be run" in ended.stdout and ended.stdout.count("| 10 | outputs/radar/seed=1") == 2


def test_jobs_of_several_devices_are_launched_with_a_process_a_device(tmp_path):
    many = ["hydra.launcher.gpus=[4,5,6,7]", "hydra.launcher.gpus_per_job=2"]
    ended = sweep(tmp_path, "seed=1,2", "name=wide", "sweep=gpu_queue", *many, OMP_NUM_THREADS="1")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 jobs, 2 to be run, on 2 slots" in ended.stdout and states(tmp_path) == {"seed=1": "done", "seed=2": "done"}
    assert {row["CUDA_VISIBLE_DEVICES"] for row in seen(tmp_path).values()} == {"4,5", "6,7"}
    for name in ("seed=1", "seed=2"):
        assert sorted(path.name for path in (tmp_path / "outputs/wide" / name).glob("rank_*")) == ["rank_0_of_2", "rank_1_of_2"]


def test_a_queue_inside_torchrun_and_too_few_devices_are_refused(tmp_path):
    inside = sweep(tmp_path, "seed=1,2", "sweep=gpu_queue", WORLD_SIZE="2")
    assert inside.returncode == 2 and "leave out torchrun" in inside.stderr
    few = sweep(tmp_path, "seed=1,2", "sweep=gpu_queue", "hydra.launcher.gpus=[6]", "hydra.launcher.gpus_per_job=2")
    assert few.returncode == 2 and "there are 1 GPUs: 6" in few.stderr


def test_several_configurations_that_choose_on_the_test_parts_are_told_of_nested(tmp_path):
    outer = ["experiment=hip", "cv=stratified_group", "cv.selection=outer", "cv.inner_val=0", "dry_run=true"]
    several = sweep(tmp_path, *outer, "loss=clip,superclip", "cv.fold=1,2")
    assert several.returncode == 0, several.stderr
    assert "WARNING: 2 configurations with cv.selection=outer" in several.stdout and "cv=nested" in several.stdout.split("WARNING")[1]
    assert "WARNING" not in sweep(tmp_path, *outer, "cv.fold=1,2", "seed=0,1").stdout  # one, in folds and from two starts
    assert "WARNING" not in sweep(tmp_path, *outer[:2], "loss=clip,superclip", "dry_run=true").stdout


@pytest.mark.parametrize("choice", [[], ["sweep=gpu_queue"]])
def test_a_dry_run_prints_the_jobs_and_their_states_and_leaves_nothing(choice, tmp_path):
    empty = sweep(tmp_path, "seed=1,2", "loss=siglip", "dry_run=true", *choice)
    assert empty.returncode == 0 and "torch imported: False" in empty.stderr and list(tmp_path.iterdir()) == []
    assert (
        "absent | seed=1 | outputs/radar/loss=siglip,seed=1" in empty.stdout and "loss=siglip seed" not in empty.stdout.split("absent")[1]
    )
    assert sweep(tmp_path, "seed=1,13", *choice).returncode == 10
    (tmp_path / "outputs/radar/seed=3").mkdir()
    (tmp_path / "outputs/radar/seed=3/status.json").write_text(json.dumps({"state": "running", "config_hash": "another"}))
    before = sorted(path for path in tmp_path.rglob("*"))
    table = sweep(tmp_path, "seed=1,2,3,13", "dry_run=true", *choice)
    told = [line.split("|")[0].strip() for line in table.stdout.splitlines() if " | " in line]
    assert told == ["done", "absent", "refused", "unfinished"] and sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("choice, plugin", [("joblib", "joblib_launcher"), ("slurm", "submitit_launcher")])
def test_launchers_of_other_packages_tell_every_end_too(choice, plugin, tmp_path):
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}")
    here = ["hydra/launcher=submitit_local"] if choice == "slurm" else []
    done = tmp_path / "outputs/radar/seed=1"
    assert sweep(tmp_path, "seed=1").returncode == 0 and done.exists()
    ended = sweep(tmp_path, "seed=1,2", "resume=must", f"sweep={choice}", *here)  # seed 2 has no run: an error without training
    assert ended.returncode == 10, ended.stderr
    assert "1 of 2 jobs failed" in ended.stderr and "seed=2 holds no run" in ended.stderr and "done   | seed=1 | 10 | " in ended.stderr


@pytest.mark.slow
def test_optuna_looks_where_the_monitor_is_better_and_asks_for_the_same_trials_again(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    command = ["seed=choice(1,2,3,4)", "sweep=optuna", "hydra.sweeper.n_trials=3", "name=o"]
    first = sweep(tmp_path, *command)
    assert first.returncode == 0, first.stderr
    before, again = states(tmp_path), sweep(tmp_path, *command)
    assert again.stdout.count("finished before") == 3 and states(tmp_path) == before
    best = max(int(name.removeprefix("seed=")) for name in before)
    assert f"Best value: {10.0 * best}" in first.stdout + first.stderr
    wrong = sweep(tmp_path, *command, "hydra.sweeper.direction=minimize")
    assert wrong.returncode == 10 and "valid/RSum is better at its max: write hydra.sweeper.direction=maximize" in wrong.stderr


def test_a_study_has_no_dry_run_and_says_why(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    ended = sweep(tmp_path, "seed=choice(1,2,3,4)", "sweep=optuna", "hydra.sweeper.n_trials=2", "dry_run=true")
    assert ended.returncode == 2 and "by the results of those before it" in ended.stderr and "Traceback" not in ended.stderr, ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("choice, extra", [("joblib", "sweep"), ("optuna", "sweep"), ("slurm", "slurm")])
def test_a_missing_plugin_ends_with_2_and_the_pip_command(choice, extra, tmp_path):
    script = (
        "import sys\nimport importlib.util, pkgutil\n"
        "walk = pkgutil.walk_packages\n"
        "pkgutil.walk_packages = lambda *a, **k: (m for m in walk(*a, **k) if 'hydra_plugins.hydra_' not in m.name)\n"
        f"from mmexpert.train import main\nsys.argv = ['train', '-m', 'sweep={choice}', 'seed=1,2', 'dry_run=true']\nmain()"
    )
    ended = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and f"pip install 'mmexpert[{extra}]'" in ended.stderr, ended.stderr
