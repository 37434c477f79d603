"""Pictures: drawn for every kind of run, with axes named, gaps for missing values and no display."""

import json
import math

import pytest

from mmexpert.engine import plots

HISTORY = [
    {"epoch": 1, "step": 10, "train/loss_total": 3.0, "train/in_batch_recall_1": 0.1, "train/lr_radar": 1e-3, "train/logit_scale": 14.3},
    {"epoch": 2, "step": 20, "train/loss_total": 2.0, "valid/loss_total": 2.5, "valid/radar_to_text_R@1": 20.0, "valid/gallery32_radar_to_text_R@1": 50.0, "valid/sequence_radar_to_text_R@1": 60.0,
     "train/lr_radar": 5e-4, "train/logit_scale": 15.0},
]  # fmt: skip


class Kept:
    """Keeps figures instead of writing them."""

    def __init__(self, monkeypatch):
        self.figures = {}
        monkeypatch.setattr(plots, "_save", lambda figure, path: self.figures.update({path.name: figure}))


@pytest.fixture
def kept(monkeypatch):
    return Kept(monkeypatch).figures


def lines(panel):
    return {line.get_label(): list(line.get_ydata()) for line in panel.get_lines()}


STEPS = [{"epoch": 1 + n // 10, "step": n, "lr/radar": 1e-4 * n, "lr/text": 2e-4, "train/logit_scale": 14.0 + n} for n in (5, 10, 15, 20)]


def test_curves_show_loss_with_its_chance_recall_and_rates(tmp_path, kept):
    plots.training_curves(tmp_path / "curves.png", HISTORY, STEPS, best_epoch=2, chance_rows=64)
    loss, accuracy, rates, scale = kept["curves.png"].axes
    assert lines(loss)["train"] == [3.0, 2.0] and lines(loss)["ln(64), chance of loss_clip"] == [pytest.approx(4.158883)] * 2
    valid = lines(loss)["valid"]
    assert valid[0] != valid[0] and valid[1] == 2.5  # a gap where nothing was validated
    assert "radar to text R@1" in lines(accuracy) and not [name for name in lines(accuracy) if "gallery" in name or "sequence" in name]
    assert lines(accuracy)["train, in-batch recall@1"][0] == 10.0
    assert lines(rates)["radar"] == pytest.approx([5e-4, 1e-3, 1.5e-3, 2e-3]) and lines(rates)["text"] == [2e-4] * 4
    assert lines(scale)["logit scale"] == [19.0, 24.0, 29.0, 34.0] and rates.get_xlabel() == "optimizer step"
    marks = [next(line for line in panel.get_lines() if line.get_label() == "best epoch, 2") for panel in (loss, accuracy, rates)]
    assert [list(mark.get_xdata()) for mark in marks] == [[2, 2], [2, 2], [20, 20]]  # the third panel counts steps
    assert loss.get_ylabel() == "loss_total (nats)" and accuracy.get_ylabel() == "percent"


def test_without_logged_steps_rates_come_from_the_epochs_and_other_losses_have_no_chance_line(tmp_path, kept):
    history = [row | {"train/loss_clip": row["train/loss_total"] - 1} for row in HISTORY]
    plots.training_curves(tmp_path / "curves.png", history, [], best_epoch=1, chance_rows=None)
    loss, _, rates, scale = kept["curves.png"].axes
    assert lines(rates)["radar"] == [1e-3, 5e-4] and lines(scale)["logit scale"] == [14.3, 15.0]
    assert not [name for name in lines(loss) if "chance" in name] and lines(loss)["train, loss_clip alone"] == [2.0, 1.0]


def test_the_weights_of_a_combined_similarity_are_drawn_over_the_steps(tmp_path, kept):
    weights = {"global": [0.5, 0.4], "local": [0.3, 0.35], "temporal": [0.2, 0.25]}
    rows = [
        {"epoch": 1, "step": 10 * (n + 1), "lr/radar": 1e-3} | {f"train/similarity_weight_{name}": w[n] for name, w in weights.items()}
        for n in (0, 1)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plots.write_plots(tmp_path, HISTORY, {}, {}, {}, 2, None)
    (panel,) = kept["similarity_weights.png"].axes
    assert lines(panel) == weights and [list(line.get_xdata()) for line in panel.get_lines()] == [[10, 20]] * 3
    assert panel.get_xlabel() == "optimizer step" and panel.get_ylabel().startswith("weight") and panel.get_legend() is not None


def test_no_weights_are_drawn_where_one_head_or_none_scores(tmp_path, kept):
    plots.similarity_weights(tmp_path / "similarity_weights.png", HISTORY)
    plots.similarity_weights(tmp_path / "similarity_weights.png", [row | {"train/similarity_weight_local": 1.0} for row in HISTORY])
    assert not kept


def test_the_rows_of_steps_are_read_without_the_half_line_of_a_kill(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5, "lr/radar": 0.1}\n{"step": 5, "valid/RSum": 3}\n{"step": 10, "lr/rad', encoding="utf-8")
    assert plots.logged_steps(path) == [{"step": 5, "lr/radar": 0.1}] and plots.logged_steps(tmp_path / "none") == []


def test_retrieval_metrics_fill_four_panels(tmp_path, kept):
    names = ["radar_to_text", "text_to_radar"]
    tables = {
        "ranks": {name: [1, 2, 2, 4] for name in names},
        "n10": {name: [4, 4, 4, 4] for name in names},
        "similarity_histogram": {"positive": [0] * 59 + [4], "negative": [12] + [0] * 59},
    }
    chance = {f"{name}_R@{k}": 25.0 * k for name in names for k in (1, 5)}
    metrics = {f"{name}_R@{k}": 50.0 for name in names for k in (1, 5)} | {"positive_similarity": 0.9, "negative_similarity": -0.9}
    metrics |= {"radar_to_text_gallery": 12, "text_to_radar_gallery": 4, "similarity_gap": 1.8}
    del metrics["text_to_radar_R@5"]
    plots.model_metrics(
        tmp_path / "m.png", tables, {"directions": names, "k": [1, 5], "queries": 4, "gallery": 4, "chance": chance}, metrics
    )
    recall, histogram, ranks, hubs = kept["m.png"].axes
    assert [bar.get_height() for bar in recall.patches][:3] == [50.0] * 3 and math.isnan(recall.patches[3].get_height())  # a gap
    assert "radar to text 12, text to radar 4" in recall.get_title()
    chance_marks = [tuple(point) for marks in recall.collections for point in marks.get_offsets()]
    assert [height for _, height in chance_marks] == [25.0, 125.0] * 2
    assert len(histogram.patches) == 120 and histogram.get_title() == "Cosine of pairs, gap 1.800"
    assert sorted(line.get_xdata()[0] for line in histogram.get_lines()) == [-0.9, 0.9] and ranks.get_xscale() == "log"
    assert max(bar.get_height() for bar in histogram.patches) == 1.0
    assert lines(ranks)["radar to text"] == [25.0, 50.0, 75.0, 100.0]
    assert sum(bar.get_height() for bar in hubs.patches) == 8


def test_confusion_shows_counts_truth_in_rows(tmp_path, kept):
    plots.confusion(tmp_path / "c.png", [{"truth": "walk", "walk": 3, "jump": 1}, {"truth": "jump", "walk": 0, "jump": 2}])
    (panel,) = kept["c.png"].axes
    assert [text.get_text() for text in panel.texts] == ["3", "1", "0", "2"]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["walk", "jump"] and panel.get_ylabel() == "truth"


def test_files_appear_where_they_apply(tmp_path):
    plots.write_plots(tmp_path, HISTORY, {"confusion": [{"truth": "a", "a": 1}]}, {}, {}, 1, 8)
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["confusion.png", "training_curves.png"]
    assert (tmp_path / "plots" / "confusion.png").read_bytes().startswith(b"\x89PNG")
