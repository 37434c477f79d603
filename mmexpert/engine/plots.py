"""The pictures of a run: curves over the epochs, and what the final metrics look like. matplotlib is imported when drawing.

150 dpi, no display needed; a missing value is a gap.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_NAN = float("nan")
_RECALL = re.compile(r"valid/[a-z]+_to_[a-z]+_R@1")  # of the full gallery by the score that ranks: no prefix
_WEIGHT = "train/similarity_weight_"
_BINS = 60  # of the similarity histograms over [-1, 1]


def write_plots(
    folder: Path,
    history: list[dict[str, Any]],
    tables: dict[str, Any],
    protocol: dict[str, Any],
    metrics: dict[str, Any],
    best_epoch: int,
    chance_rows: int | None,
) -> None:
    """plots/training_curves.png, and model_metrics.png (retrieval), confusion.png (classes), retrieved.png (composed),
    similarity_weights.png (a similarity of several heads) where they apply.

    chance_rows: rows contrasted with each other, whose logarithm is the chance level of loss_clip; None = no such line.
    """
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    if history:
        steps = logged_steps(folder / "metrics.jsonl")
        training_curves(plots / "training_curves.png", history, steps, best_epoch, chance_rows)
        similarity_weights(plots / "similarity_weights.png", steps or history)
    if "ranks" in tables:
        model_metrics(plots / "model_metrics.png", tables, protocol, metrics)
    if "retrieved" in tables:
        from mmexpert.engine.composed_plots import composed_metrics, retrieved

        composed_metrics(plots / "model_metrics.png", tables, protocol, metrics)
        retrieved(plots / "retrieved.png", tables["retrieved"], tables["thumbnail"])
    if "confusion" in tables:
        confusion(plots / "confusion.png", tables["confusion"])


def logged_steps(path: Path) -> list[dict[str, Any]]:
    """The training rows of metrics.jsonl: every log_every steps, with rates by group (lr/GROUP) and scales. Empty where there is none."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]  # a kill may have cut the last line short
    return [row for row in rows if any(name.startswith("lr/") for name in row)]


def training_curves(
    path: Path, history: list[dict[str, Any]], steps: list[dict[str, Any]], best_epoch: int, chance_rows: int | None
) -> None:
    """Three panels: loss with ln(batch) and accuracy over epochs, learning rates and logit scale over optimizer steps."""
    figure, panels = _figure(1, 3, (14, 4))
    epochs = [row["epoch"] for row in history]
    for part in ("train", "valid"):
        _line(panels[0], epochs, history, f"{part}/loss_total", part)
        if any(row.get(f"{part}/loss_clip") != row.get(f"{part}/loss_total") for row in history):  # there are other terms
            _line(panels[0], epochs, history, f"{part}/loss_clip", f"{part}, loss_clip alone", style=":")
    if chance_rows:
        panels[0].axhline(math.log(chance_rows), color="grey", linestyle="--", linewidth=1, label=f"ln({chance_rows}), chance of loss_clip")
    panels[0].set(title="Loss", ylabel="loss_total (nats)")
    _line(panels[1], epochs, history, "train/in_batch_recall_1", "train, in-batch recall@1", 100)
    recalls = dict.fromkeys(key for row in history for key in row if _RECALL.fullmatch(key))
    shown = {key: (key.removeprefix("valid/").replace("_", " "), 1) for key in recalls} | {
        "valid/acc": ("valid accuracy", 100),
        "valid/balanced_acc": ("valid balanced accuracy", 100),
        "valid/average": ("valid average of recalls", 1),
    }
    for key, (name, factor) in shown.items():
        _line(panels[1], epochs, history, key, name, factor)
    panels[1].set(title="Accuracy", ylabel="percent", ylim=(0, 100))
    _rates(panels[2], steps or history)
    best_step = next((row["step"] for row in history if row["epoch"] == best_epoch and "step" in row), None)
    for panel, place, unit in zip(panels, (best_epoch, best_epoch, best_step), ("epoch", "epoch", "optimizer step"), strict=True):
        if place is not None:
            panel.axvline(place, color="black", linewidth=0.8, alpha=0.6, label=f"best epoch, {best_epoch}")
        panel.set_xlabel(unit)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8)
    _save(figure, path)


def _rates(panel: Any, rows: list[dict[str, Any]]) -> None:
    """Learning rate of each group, and the logit scale on the right axis; rows of metrics.jsonl, or of the history where it is gone."""
    steps = [row.get("step", row["epoch"]) for row in rows]
    for key in sorted({key for row in rows for key in row if key.startswith(("lr/", "train/lr_"))}):
        _line(panel, steps, rows, key, key.removeprefix("lr/").removeprefix("train/lr_"), marker=None)
    panel.set(title="Learning rate and logit scale", ylabel="learning rate")
    right = panel.twinx()
    _line(right, steps, rows, "train/logit_scale", "logit scale", style="k:", marker=None)
    right.set_ylabel("logit scale (dotted)")


def similarity_weights(path: Path, rows: list[dict[str, Any]]) -> None:
    """The weight of each head over optimizer steps, where there are several; rows as _rates has them."""
    keys = list(dict.fromkeys(key for row in rows for key in row if key.startswith(_WEIGHT)))
    if len(keys) < 2:
        return
    figure, (panel,) = _figure(1, 1, (7, 4))
    for key in keys:
        _line(panel, [row.get("step", row["epoch"]) for row in rows], rows, key, key.removeprefix(_WEIGHT), marker=None)
    panel.set(title="Similarity weights", xlabel="optimizer step", ylabel="weight of the head (sum 1)", ylim=(0, 1))
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    _save(figure, path)


def model_metrics(path: Path, tables: dict[str, Any], protocol: dict[str, Any], metrics: dict[str, Any]) -> None:
    """Four panels: R@K with chance, similarity histograms, share of queries by rank, how often rows are among the first 10."""
    figure, panels = _figure(2, 2, (12, 8))
    directions, k = protocol["directions"], protocol["k"]
    width = 0.8 / len(directions)
    for number, name in enumerate(directions):
        places = [i + number * width for i in range(len(k))]
        panels[0].bar(places, [metrics.get(f"{name}_R@{n}", _NAN) for n in k], width, label=name.replace("_", " "))
        panels[0].scatter(places, [protocol["chance"].get(f"{name}_R@{n}", _NAN) for n in k], marker="_", s=300, color="black", zorder=3)
    panels[0].set_xticks([i + width / 2 for i in range(len(k))], [f"R@{n}" for n in k])
    sizes = ", ".join(f"{name.replace('_', ' ')} {metrics.get(f'{name}_gallery', '?')}" for name in directions)
    panels[0].set(title=f"Recall; gallery: {sizes} (black: chance)", ylabel="percent", ylim=(0, 118))  # the legend stands above
    edges = [-1 + 2 * i / _BINS for i in range(_BINS)]
    for name in ("negative", "positive"):
        counts = tables["similarity_histogram"][name]
        panels[1].bar(edges, [count / max(1, sum(counts)) for count in counts], 2 / _BINS, align="edge", alpha=0.6, label=name)
        if f"{name}_similarity" in metrics:
            panels[1].axvline(metrics[f"{name}_similarity"], color="black", linewidth=0.8)
    panels[1].set(title=f"Cosine of pairs, gap {metrics.get('similarity_gap', _NAN):.3f}", xlabel="cosine", ylabel="share of pairs")
    for name, ranks in tables["ranks"].items():
        ordered = sorted(ranks)
        panels[2].plot(
            ordered, [100 * (i + 1) / len(ordered) for i in range(len(ordered))], drawstyle="steps-post", label=name.replace("_", " ")
        )
    panels[2].set(title="Queries found by rank", xlabel="rank (log)", ylabel="percent of queries", xscale="log")
    for name, counts in tables["n10"].items():
        share = metrics.get(f"{name}_hub_share", _NAN)
        bins = [edge - 0.5 for edge in range(max(counts) + 2)]
        panels[3].hist(counts, bins=bins, alpha=0.6, label=f"{name.replace('_', ' ')}, hub share {share:.3f}")
    panels[3].set(title="How often a gallery row is among the first 10", xlabel="number of queries", ylabel="rows")
    for number, panel in enumerate(panels):
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, ncol=1 if number else len(directions))
    _save(figure, path)


def confusion(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Counts, rows are truth; shaded by the share of the row."""
    names = [name for name in rows[0] if name != "truth"]
    figure, panels = _figure(1, 1, (1.2 + 0.9 * len(names), 1 + 0.8 * len(names)))
    counts = [[row[name] for name in names] for row in rows]
    panels[0].imshow([[count / max(1, sum(line)) for count in line] for line in counts], cmap="Blues", vmin=0, vmax=1)
    for i, line in enumerate(counts):
        for j, count in enumerate(line):
            panels[0].text(j, i, str(count), ha="center", va="center", color="white" if count > 0.5 * max(1, sum(line)) else "black")
    panels[0].set_xticks(range(len(names)), names, rotation=45, ha="right")
    panels[0].set_yticks(range(len(rows)), [row["truth"] for row in rows])
    panels[0].set(title="Confusion", xlabel="predicted", ylabel="truth")
    _save(figure, path)


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False)
    return figure, list(panels.flat)


def _line(
    panel: Any, places: list[int], rows: list[dict[str, Any]], key: str, name: str, factor: float = 1.0, style: str = "-", marker: Any = "o"
) -> None:
    values = [factor * row[key] if row.get(key) is not None else _NAN for row in rows]
    shown = sum(not math.isnan(value) for value in values)
    if shown:
        marker = "o" if shown == 1 else marker  # a line through one point can not be seen
        panel.plot(places, values, style, marker=marker, markersize=3, label=name)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=150)
