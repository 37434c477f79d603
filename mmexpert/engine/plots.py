"""The pictures of a run: curves over the epochs, and what the final metrics look like. matplotlib is imported when drawing.

150 dpi, no display needed; a missing value is a gap.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_NAN = float("nan")


def write_plots(
    folder: Path,
    history: list[dict[str, Any]],
    tables: dict[str, Any],
    protocol: dict[str, Any],
    metrics: dict[str, Any],
    best_epoch: int,
    batch_size: int,
) -> None:
    """plots/training_curves.png, and model_metrics.png (retrieval), confusion.png (classes), retrieved.png (composed) where they
    apply."""
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    if history:
        training_curves(plots / "training_curves.png", history, best_epoch, batch_size)
    if "ranks" in tables:
        model_metrics(plots / "model_metrics.png", tables, protocol, metrics)
    if "retrieved" in tables:
        from mmexpert.engine.composed_plots import composed_metrics, retrieved

        composed_metrics(plots / "model_metrics.png", tables, protocol, metrics)
        retrieved(plots / "retrieved.png", tables["retrieved"], tables["thumbnail"])
    if "confusion" in tables:
        confusion(plots / "confusion.png", tables["confusion"])


def training_curves(path: Path, history: list[dict[str, Any]], best_epoch: int, batch_size: int) -> None:
    """Three panels over epochs: loss with ln(batch), accuracy, learning rates and logit scale."""
    figure, panels = _figure(1, 3, (14, 4))
    epochs = [row["epoch"] for row in history]
    for part in ("train", "valid"):
        _line(panels[0], epochs, history, f"{part}/loss_total", part)
    panels[0].axhline(math.log(batch_size), color="grey", linestyle="--", linewidth=1, label=f"ln({batch_size}), chance")
    panels[0].set(title="Loss", ylabel="loss_total (nats)")
    _line(panels[1], epochs, history, "train/in_batch_recall_1", "train, in-batch recall@1", 100)
    recalls = [
        key for key in history[-1] if key.startswith("valid/") and key.endswith("_R@1") and key.count("_to_") == 1 and "gallery" not in key
    ]
    shown = {key: (key.removeprefix("valid/").replace("_", " "), 1) for key in recalls} | {
        "valid/acc": ("valid accuracy", 100),
        "valid/balanced_acc": ("valid balanced accuracy", 100),
        "valid/average": ("valid average of recalls", 1),
    }
    for key, (name, factor) in shown.items():
        _line(panels[1], epochs, history, key, name, factor)
    panels[1].set(title="Accuracy", ylabel="percent", ylim=(0, 100))
    for key in sorted({key for row in history for key in row if key.startswith("train/lr_")}):
        _line(panels[2], epochs, history, key, key.removeprefix("train/lr_"))
    panels[2].set(title="Learning rate and logit scale", ylabel="learning rate at the epoch's end")
    right = panels[2].twinx()
    _line(right, epochs, history, "train/logit_scale", "logit scale", style=":")
    right.set_ylabel("logit scale (dotted)")
    for panel in panels:
        panel.axvline(best_epoch, color="black", linewidth=0.8, alpha=0.6)
        panel.set_xlabel("epoch (line: best)")
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8)
    _save(figure, path)


def model_metrics(path: Path, tables: dict[str, Any], protocol: dict[str, Any], metrics: dict[str, Any]) -> None:
    """Four panels: R@K with chance, similarity histograms, share of queries by rank, how often rows are among the first 10."""
    figure, panels = _figure(2, 2, (12, 8))
    directions, k = protocol["directions"], protocol["k"]
    width = 0.8 / len(directions)
    for number, name in enumerate(directions):
        places = [i + number * width for i in range(len(k))]
        panels[0].bar(places, [metrics[f"{name}_R@{n}"] for n in k], width, label=name.replace("_", " "))
        panels[0].scatter(places, [protocol["chance"][f"{name}_R@{n}"] for n in k], marker="_", s=300, color="black", zorder=3)
    panels[0].set_xticks([i + width / 2 for i in range(len(k))], [f"R@{n}" for n in k])
    panels[0].set(title=f"{protocol['queries']} queries, gallery {protocol['gallery']} (black: chance)", ylabel="percent", ylim=(0, 100))
    edges = [-1 + 2 * i / 60 for i in range(60)]
    for name in ("negative", "positive"):
        counts = tables["similarity_histogram"][name]
        panels[1].bar(edges, [count / max(1, sum(counts)) for count in counts], 2 / 60, align="edge", alpha=0.6, label=name)
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
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
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


def _line(panel: Any, epochs: list[int], history: list[dict[str, Any]], key: str, name: str, factor: float = 1.0, style: str = "-") -> None:
    values = [factor * row[key] if row.get(key) is not None else _NAN for row in history]
    if any(not math.isnan(value) for value in values):
        panel.plot(epochs, values, style, marker="o", markersize=3, label=name)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=150)
