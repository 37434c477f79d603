"""Whole runs as a user starts them: the folder, resume, stops, sweeps, several processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from warm_commands import warm_run

ROOT = Path(__file__).resolve().parents[1]
FILES = [
    "config.yaml",
    "config.json",
    "environment.json",
    "log.txt",
    "history.json",
    "metrics.json",
    "training_results.json",
    "status.json",
    "metrics.jsonl",
    "train_metrics.csv",
    "validation_metrics.csv",
    "history.csv",
    "folds_info.json",
    "predictions.csv",
    "report.html",
    "checkpoints/last",
    "checkpoints/best",
    "model/model.safetensors",
    "model/config.json",
    "model/tokenizer/tokenizer.json",
    "plots/training_curves.png",
    "plots/model_metrics.png",
]


def environment(**extra: str) -> dict[str, str]:
    clean = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    }
    return clean | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | extra


def train(folder: Path, *overrides: str, processes: int = 1, **extra: str) -> subprocess.CompletedProcess:
    if processes == 1:
        return warm_run("mmexpert.train", overrides, folder, environment(**extra))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m", "mmexpert.train"]
    return subprocess.run([*start, *overrides], cwd=folder, env=environment(**extra), capture_output=True, text=True, timeout=300)


def outcome(folder: Path) -> dict:
    """What two equal runs share: weights, history without times, best lists."""
    import hashlib

    weights = hashlib.sha256((folder / "checkpoints/last/model.safetensors").read_bytes()).hexdigest()
    history = [{k: v for k, v in row.items() if "time" not in k} for row in json.loads((folder / "history.json").read_text())]
    best = sorted(path.name for path in (folder / "checkpoints").iterdir() if path.name.startswith("epoch_"))
    return {"weights": weights, "history": history, "best": best}


def test_a_run_leaves_every_promised_file_and_the_chance_line(tiny_run):
    assert [name for name in FILES if not (tiny_run / name).exists()] == []
    result = (tiny_run / "result.txt").read_text()
    assert "radar_to_text" in result and "text_to_radar" in result and "chance" in result
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    assert metrics["test/radar_to_text_gallery"] == 32 and metrics["protocol"]["test"]["chance"]["radar_to_text_R@1"] > 0
    assert json.loads((tiny_run / "status.json").read_text())["state"] == "done"
    history = json.loads((tiny_run / "history.json").read_text())
    assert [row["step"] for row in history] == [4, 8] and all("valid/RSum" in row and "train/loss_total" in row for row in history)
    lines = re.findall(
        r": (?:Epoch 2 \[Train\]: 4/4 \[.*loss=|\[Val\]: 2/2 \[.*loss=|Train Loss: |Val Loss: )([\d.]+)", (tiny_run / "log.txt").read_text()
    )
    train, valid = f"{history[1]['train/loss_total']:.4f}", f"{history[1]['valid/loss_total']:.4f}"
    assert lines[-4:] == [train, valid, train, valid]  # the bar ends with the means of the epoch


def test_a_finished_run_is_not_run_again_and_another_config_in_its_folder_is_refused(tmp_path, tiny):
    command = [*tiny, "trainer.max_steps=2", "name=again"]
    assert train(tmp_path, *command).returncode == 0
    run = next((tmp_path / "outputs/again").iterdir())
    before = (run / "checkpoints/last/model.safetensors").stat().st_mtime_ns
    again = train(tmp_path, *command)
    assert again.returncode == 0 and "finished before" in again.stdout and "radar_to_text" in again.stdout
    assert (run / "checkpoints/last/model.safetensors").stat().st_mtime_ns == before
    stored = json.loads((run / "config.json").read_text())
    stored["config"]["seed"] = 7
    (run / "config.json").write_text(json.dumps(stored))
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"config_hash": "other"}))
    refused = train(tmp_path, *command)
    assert refused.returncode == 4 and "seed: stored 7, now 42" in refused.stderr


def test_a_term_signal_saves_within_a_step_and_the_same_command_ends_as_if_never_stopped(tmp_path, tiny):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir(), stopped.mkdir()
    command = [*tiny, "trainer.epochs=4", "trainer.log_every=1", "name=stop"]
    assert train(whole, *command).returncode == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "mmexpert.train", *command],
        cwd=stopped,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if "step 6:" in line:
            process.send_signal(signal.SIGTERM)
            break
    process.stdout.read()
    assert process.wait(timeout=60) == 143
    run = next((stopped / "outputs/stop").iterdir())
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "stopped" and status["exit_code"] == 143
    assert train(stopped, *command).returncode == 0
    assert outcome(run) == outcome(next((whole / "outputs/stop").iterdir()))
    assert json.loads((run / "status.json").read_text())["resumes"][0]["exact"]


def test_a_sweep_makes_a_folder_a_job_and_runs_only_what_is_missing(tmp_path, tiny):
    command = ["-m", "loss=clip,siglip", *tiny, "trainer.max_steps=2", "name=sweep"]
    first = train(tmp_path, *command)
    assert first.returncode == 0, first.stderr
    left = {path.name for path in (tmp_path / "outputs/sweep").iterdir() if path.is_file()}
    folders = [path for path in (tmp_path / "outputs/sweep").iterdir() if path.is_dir()]
    assert len(folders) == 2 and left == {"sweep.csv", "sweep.html"}
    second = train(tmp_path, *command)
    assert second.stdout.count("finished before") == 2


def test_a_failing_job_does_not_stop_the_others_and_the_sweep_ends_with_10(tmp_path, tiny):
    command = ["-m", "trainer.batch_size=16,1000", *[o for o in tiny if "batch_size" not in o], "trainer.max_steps=2", "name=mixed"]
    ended = train(tmp_path, *command)
    assert ended.returncode == 10
    assert "1 of 2 jobs failed" in ended.stderr and "batch_size=1000 is larger than the training part of 64" in ended.stderr
    states = sorted(json.loads(path.read_text())["state"] for path in (tmp_path / "outputs/mixed").glob("*/status.json"))
    assert states == ["done", "failed"]


def test_two_processes_write_one_folder_and_one_set_of_files(tmp_path, tiny):
    ended = train(tmp_path, *tiny, "trainer.max_steps=4", "name=two", processes=2)
    assert ended.returncode == 0, ended.stderr[-3000:]
    run = next((tmp_path / "outputs/two").iterdir())
    assert len(list((tmp_path / "outputs/two").iterdir())) == 1
    assert [name for name in FILES if not (run / name).exists()] == []
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
    assert ended.stdout.count("| 2 processes") == 1


def test_a_launch_whose_world_size_does_not_match_is_refused_before_anything_is_written(tmp_path, tiny):
    ended = train(tmp_path, *tiny, "expect_processes=2")
    assert ended.returncode == 8 and "expect_processes=2, but 1 process" in ended.stderr
    assert not list(tmp_path.rglob("status.json"))


def test_a_second_run_in_one_folder_is_told_who_holds_it(tmp_path, tiny):
    command = [*tiny, "trainer.epochs=40", "name=held"]
    first = subprocess.Popen([sys.executable, "-m", "mmexpert.train", *command], cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.rglob("metrics.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.2)
        second = train(tmp_path, *command)
        assert second.returncode == 4 and str(first.pid) in second.stderr
    finally:
        first.kill()
        first.wait()


@pytest.mark.parametrize("override, text, code", [
    ("trainer.batch_size=15", "must be a multiple", 2),
    ("trainer.batch_size=1000", "larger than the training part of 64 samples", 2),
    ("encoder.radar.dim=48", "encoder.radar.dim=48, encoder.text.dim=32, model.projection_dim=32: the widths differ", 2),
    ("trainer.mixed_precision=fp16", "fp16 on a CPU", 2),
    ("trainer.monitor=valid/nonsense", "valid/nonsense", 2),
    ("dataset.views=doppler_only", "write `all` or a list of range, doppler, azimuth", 2),
    ("loss.temperature=7", "0.01..1", 2),
    ("model/head=linear", "no classes", 2),
])  # fmt: skip
def test_a_mistake_in_the_configuration_ends_the_run_with_its_remedy(tmp_path, tiny, override, text, code):
    accumulation = ["trainer.accumulation=2"] if override.endswith("=15") else []
    ended = train(tmp_path, *tiny, override, *accumulation, "trainer.max_steps=1", "name=wrong")
    assert ended.returncode == code, ended.stderr[-2000:]
    assert text in ended.stderr and "Traceback" not in ended.stderr


def test_an_unknown_text_model_without_network_ends_with_three_ways_on(tmp_path, tiny):
    command = [o for o in tiny if "bert" not in o]
    ended = train(tmp_path, *command, "encoder/text=minilm", "name=offline")
    assert ended.returncode == 9
    for remedy in ("local", "encoder/text=scratch", "hf download"):
        assert remedy in ended.stderr
