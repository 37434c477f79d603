"""Numbers are in files whatever the tracker does; a tracker that fails is turned off with one warning."""

import csv
import json
import logging
import types

import pytest

from mmexpert.engine.tracking import Tracker, TrackerSettings
from mmexpert.types import ConfigError, StorageError

CONFIG = {"name": "radar", "loss": {"temperature": 0.07, "directions": ["a", "b"], "bias": None}, "flag": True}


def settings(log_with=None, **given):
    plain = {"project": "mmExpert", "mode": "offline", "group": None, "tags": [], "private": True, "log_code": False}
    return TrackerSettings(**{"log_with": log_with} | plain | given)


def step(number, **values):
    return {"step": number, "epoch": 1, **values}


def fill(tracker):
    tracker.log_step(step(1, **{"train/loss_total": 2.0, "train/data_time": 0.5}))
    tracker.log_step(step(2, **{"train/loss_total": 1.5, "train/grad_norm": 3.0}))
    row = {"epoch": 1, "step": 2, "train/loss_total": 1.75, "valid/radar_to_text_R@1": 12.5}
    tracker.log_epoch(row, [row])


def test_every_row_is_in_the_json_lines_and_in_the_tables(tmp_path):
    fill(Tracker(tmp_path, settings(), None, "radar/default", CONFIG))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 2]
    assert "train/loss_total" not in lines[2] and lines[2]["valid/radar_to_text_R@1"] == 12.5
    train = list(csv.DictReader((tmp_path / "train_metrics.csv").read_text().splitlines()))
    assert [(row["step"], row["train/loss_total"], row["train/grad_norm"]) for row in train] == [("1", "2.0", ""), ("2", "1.5", "3.0")]
    (valid,) = csv.DictReader((tmp_path / "validation_metrics.csv").read_text().splitlines())
    assert valid["valid/radar_to_text_R@1"] == "12.5"
    (epoch,) = csv.DictReader((tmp_path / "history.csv").read_text().splitlines())
    assert epoch["train/loss_total"] == "1.75" and json.loads((tmp_path / "history.json").read_text())[0]["valid/radar_to_text_R@1"] == 12.5


def test_a_resume_cuts_off_the_lines_of_later_steps_and_a_half_written_one(tmp_path):
    tracker = Tracker(tmp_path, settings(), None, "radar/default", CONFIG)
    for number in range(1, 6):
        tracker.log_step(step(number))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "tra')  # a kill in mid-write
    Tracker(tmp_path, settings(), None, "radar/default", CONFIG).truncate(3)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_a_half_written_line_is_cut_off_even_where_no_whole_one_is(tmp_path):
    tracker = Tracker(tmp_path, settings(), None, "radar/default", CONFIG)
    tracker.log_step(step(1))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "tra')
    tracker.truncate(1)
    tracker.log_step(step(2))
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def test_a_folder_that_takes_no_writes_is_a_storage_error(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"metrics\.jsonl"):
        Tracker(tmp_path, settings(), None, "radar/default", CONFIG).log_step(step(1))


class Raising:
    """Stands where an Accelerator would; raises in one of its calls."""

    def __init__(self, at):
        self.at, self.sent, self.trackers = at, [], [self]

    def _maybe(self, name):
        if name == self.at:
            raise RuntimeError(f"service is down in {name}")

    def init_trackers(self, project, config, init_kwargs):
        self._maybe("start")

    def log(self, values, step):
        self._maybe("log")
        self.sent.append(values)

    def finish(self):
        self._maybe("finish")


@pytest.mark.parametrize("at", ["start", "log", "finish"])
def test_a_raising_tracker_costs_one_warning_and_no_number(tmp_path, caplog, at):
    with caplog.at_level(logging.WARNING):
        tracker = Tracker(tmp_path, settings("wandb"), Raising(at), "radar/default", CONFIG)
        fill(tracker)
        tracker.finish()
    assert [record.message for record in caplog.records] == [f"tracker wandb is off from here on: RuntimeError: service is down in {at}"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_tracker_is_started_with_flat_plain_values(tmp_path):
    seen = {}
    fake = types.SimpleNamespace(
        trackers=[], init_trackers=lambda project, config, init_kwargs: seen.update(project=project, config=config, **init_kwargs)
    )
    Tracker(tmp_path, settings("wandb", group="g", tags=["t"]), fake, "radar/default", CONFIG)
    assert seen["project"] == "mmExpert"
    assert seen["config"] == {"name": "radar", "loss.temperature": 0.07, "loss.directions": "['a', 'b']", "loss.bias": "None", "flag": True}
    options = {name: seen["wandb"][name] for name in ("name", "mode", "dir", "group", "tags")}
    assert options == {"name": "radar/default", "mode": "offline", "dir": str(tmp_path), "group": "g", "tags": ["t"]}


@pytest.mark.parametrize(
    ("changed", "message"), [({"log_with": "tensorbord"}, "choose one of tensorboard"), ({"mode": "cloud"}, "offline or online")]
)
def test_unknown_services_and_modes_are_refused_with_the_choices(changed, message):
    with pytest.raises(ConfigError, match=message):
        settings(**changed)
