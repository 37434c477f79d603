"""What a run folder tells: the command that makes it again, and no secret."""

import json
import math
import subprocess

import pytest

from mmexpert.engine import results


@pytest.mark.parametrize(
    "key",
    ["token", "hub_token", "db.password", "passwd", "credentials", "api_key", "comet_apikey", "aws-access_key", "private_key", "secret"],
)
def test_values_of_secret_keys_are_masked_at_any_depth(key):
    assert results.masked({"a": [{key: "hunter2hunter2"}], "b": 1}) == {"a": [{key: "***"}], "b": 1}


@pytest.mark.parametrize("key", ["positive_key", "tokenizer", "max_tokens", "secretary", "monitor"])
def test_harmless_keys_are_left_alone(key):
    assert results.masked({key: "value"}) == {key: "value"}


def test_secrets_of_the_environment_and_of_addresses_are_masked_in_any_text(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "abcdefgh12345678")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    text = results.masked({"note": "key abcdefgh12345678, abc, https://me:pw@host.org/repo"})["note"]
    assert text == "key ***, abc, https://host.org/repo"


def test_run_files_hold_config_hash_versions_and_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SECRET", "planted-value")
    config = {"name": "radar", "loss": {"temperature": 0.07}, "note": "planted-value", "Ü": math.nan}
    results.write_run_files(tmp_path, config, ["loss=siglip", "note=planted-value"], "abc123", 2)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["config_hash"] == "abc123" and stored["config"]["note"] == "***" and stored["config"]["loss"] == {"temperature": 0.07}
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["command"] == "torchrun --nproc_per_node 2 -m mmexpert.train loss=siglip note=***"
    assert environment["processes"] == 2 and {"torch", "mmexpert", "python"} <= environment["versions"].keys()
    assert (tmp_path / "config.yaml").read_text().startswith("name: radar\nloss:\n")
    assert not [path for path in tmp_path.iterdir() if "planted-value" in path.read_text()]


@pytest.mark.parametrize("overrides", [["name=a b"], ["encoder.text.name='it''s'"], ["-m", "loss=clip,siglip"], ["run=x;rm"], ["k=[1,2]"]])
def test_the_stored_command_is_read_back_by_a_shell_as_it_was_given(overrides):
    line = results.command(overrides, 1).removeprefix("python -m mmexpert.train ")
    shown = subprocess.run(["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == overrides


def test_tables_of_classes_and_predictions_are_written_where_there_are_any(tmp_path):
    results.write_predictions(tmp_path, [{"id": "a", "label": "=SUM(A1)", "p": 0.5}], {"confusion": [{"truth": "x", "x": 1}], "ranks": {}})
    assert (tmp_path / "predictions.csv").read_text().splitlines() == ["id,label,p", "a,'=SUM(A1),0.5"]
    assert (tmp_path / "confusion.csv").exists() and not (tmp_path / "per_class.csv").exists() and not (tmp_path / "ranks.csv").exists()


def test_left_out_records_are_listed_one_by_one(tmp_path):
    results.write_data_report(tmp_path, {"records": 2}, [("a.npy", "a", "no text")])
    assert (tmp_path / "dropped.csv").read_text().splitlines() == ["file,record,reason", "a.npy,a,no text"]


def test_metrics_are_strict_json(tmp_path):
    results.write_metrics(tmp_path, {"test/R@1": 50.0, "test/odd": math.nan}, {"test": {"gallery": 4}})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"test/R@1": 50.0, "test/odd": None, "protocol": {"test": {"gallery": 4}}}
