"""The files that a finished run tells its figures by: names, protocol, strict JSON, the log's lines on chance and on its end."""

import hashlib
import json
import math

import pytest

METRICS = ("R@1", "R@5", "R@10", "hits@1", "mean_rank", "median_rank", "MRR", "queries", "gallery", "hard_negative")


@pytest.fixture(scope="module")
def stored(tiny_run):
    def strict(name):
        def refuse(constant):
            raise AssertionError(f"{name} holds {constant}, which is no JSON")

        return json.loads((tiny_run / name).read_text(encoding="utf-8"), parse_constant=refuse)

    return strict


def test_every_retrieval_figure_is_logged_by_its_name_for_both_directions(stored):
    metrics, history = stored("metrics.json"), stored("history.json")
    for part, row in (("test", metrics), ("valid", metrics), ("valid", history[-1])):
        for direction in ("radar_to_text", "text_to_radar"):
            for name in METRICS:
                assert isinstance(row[f"{part}/{direction}_{name}"], (int, float)), name
            for name in ("hub_share", "hub_skew", "unreached"):
                assert f"{part}/{direction}_{name}" in row
        for name in ("RSum", "positive_similarity", "negative_similarity", "similarity_gap", "positive_std", "negative_std"):
            assert f"{part}/{name}" in row
        assert row[f"{part}/radar_effective_rank"] >= 1 and row[f"{part}/text_effective_rank"] >= 1
    assert 0 <= history[-1]["train/in_batch_recall_1"] <= 1


def test_the_protocol_says_how_and_of_what_the_figures_are(stored, tiny_run):
    protocol = stored("metrics.json")["protocol"]["test"]
    assert protocol["ties"] == "pessimistic" and protocol["k"] == [1, 5, 10] and protocol["positives"] == "text"
    assert protocol["queries"] == 32 and protocol["gallery"] == 32 and protocol["captions"] == {"min": 1, "max": 1}
    assert protocol["part"] == "test" and protocol["folds_of"] is None and protocol["precision"].startswith("fp32")
    assert protocol["chance"]["radar_to_text_R@1"] >= 100 / 32
    best = (tiny_run / "checkpoints" / "best" / "model.safetensors").read_bytes()
    assert protocol["fingerprint_checkpoint"] == hashlib.sha256(best).hexdigest()
    assert protocol["fingerprint_data"] == stored("data_report.json")["fingerprint"]
    assert sum(stored("data_report.json")["clips_by_frames"].values()) == 64 + 32 + 32  # clips by their frames
    assert protocol["weights"] == {"radar": "from scratch", "text": "from scratch"}


def test_training_results_hold_the_whole_run(stored):
    results, metrics = stored("training_results.json"), stored("metrics.json")
    told = "name state stopped best_epoch best final protocol config history chance_rows versions seconds"
    assert set(told.split()) == set(results) and results["chance_rows"] == results["config"]["trainer"]["batch_size"]
    assert (
        results["state"] == stored("status.json")["state"] == "done" and results["stopped"] == stored("status.json")["stopped"] == "epochs"
    )
    assert results["best"]["valid/RSum"] == metrics["valid/RSum"] == max(row["valid/RSum"] for row in results["history"])
    assert results["final"] == results["history"][-1] == stored("history.json")[-1] and results["best_epoch"] == metrics["best_epoch"]
    assert [row["epoch"] for row in results["history"]] == [1, 2] and [row["step"] for row in results["history"]] == [4, 8]
    assert results["config"]["trainer"]["batch_size"] == 16 and results["seconds"] > 0 and "torch" in results["versions"]


def test_the_log_names_the_chance_level_which_epoch_was_kept_and_why_the_run_ended(stored, tiny_run):
    log = (tiny_run / "log.txt").read_text(encoding="utf-8")
    assert f"chance level of loss_clip: ln(16) = {math.log(16):.4f}" in log
    metrics = stored("metrics.json")
    kept = f"best epoch {metrics['best_epoch']}: valid/RSum {metrics['best_value']:.4f}"
    assert f"ended after epoch 2, trained to its end; {kept}" in log


def test_both_pictures_are_drawn_in_150_dpi(tiny_run):
    from PIL import Image

    for name in ("training_curves", "model_metrics"):
        with Image.open(tiny_run / "plots" / f"{name}.png") as picture:
            assert picture.info["dpi"][0] == pytest.approx(150, abs=0.1) and picture.width >= 1800
