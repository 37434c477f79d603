"""Pictures of composed retrieval: recalls, ranks and hubs; and a sheet of queries with what was found. 150 dpi, no display needed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any


def composed_metrics(path: Path, tables: dict[str, Any], protocol: dict[str, Any], metrics: dict[str, Any]) -> None:
    """Four panels: recalls with chance; in the group, per category or edit; queries by rank; how often rows are among the first 10."""
    figure, panels = _figure(2, 2, (12, 8))
    whole = [name for name in protocol["shown"] if name.startswith("R@")] or [name for name in metrics if name.startswith("average_R@")]
    parts = [name for name in protocol["shown"] if "R" in name and name not in whole]
    parts += [name for name in metrics if name.endswith("_R@1") and name not in parts]  # by edit, in sets that know it
    title = f"{protocol['queries']} queries, {protocol['gallery']} gallery (black: chance)"
    for panel, names, text in ((panels[0], whole, title), (panels[1], parts, "In the group, by category or edit")):
        panel.bar(range(len(names)), [metrics[name] for name in names], 0.7)
        told = [(i, protocol["chance"][name]) for i, name in enumerate(names) if name in protocol["chance"]]
        panel.scatter([i for i, _ in told], [value for _, value in told], marker="_", s=200, color="black", zorder=3)
        panel.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names], fontsize=8)
        panel.set(title=text, ylabel="percent", ylim=(0, 100))
    for name, ranks in tables["query_ranks"].items():
        share = [100 * (i + 1) / len(ranks) for i in range(len(ranks))]
        panels[2].plot(sorted(ranks), share, drawstyle="steps-post", label=f"{name}, gallery {protocol['gallery_sizes'][name]}")
    panels[2].set(title="Queries found by rank", xlabel="rank (log)", ylabel="percent of queries", xscale="log")
    for name, counts in tables["n10"].items():
        panels[3].hist(counts, bins=[edge - 0.5 for edge in range(max(counts) + 2)], alpha=0.6, label=f"{name}{hubs(metrics, name)}")
    panels[3].set(title="How often a gallery row is among the first 10", xlabel="number of queries", ylabel="rows", yscale="log")
    for panel in panels:
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def hubs(metrics: dict[str, Any], name: str) -> str:
    """The hub share of a gallery, as its legend tells it; empty for galleries too small to have one."""
    share = metrics.get("hub_share" if name == "all" else f"{name}_hub_share")
    return "" if share is None else f", hub share {share:.3f}"


def retrieved(path: Path, rows: list[dict[str, Any]], thumbnail: Callable[[str], Any]) -> None:
    """A row a query: reference, caption, target, first five; the target among them has a green title. thumbnail: name -> PIL image."""
    columns = max(len(row["names"]) for row in rows)
    figure, panels = _figure(len(rows), columns, (1.7 * columns, 1.9 * len(rows)))
    for panel in panels:
        panel.axis("off")
    for i, row in enumerate(rows):
        for j, name in enumerate(row["names"]):
            panel = panels[i * columns + j]
            panel.imshow(thumbnail(name))
            hit = j > 1 and name == row["names"][1]
            title = ("reference", f"target, rank {row['rank']:g}")[j] if j < 2 else f"{j - 1}" + (" (target)" if hit else "")
            panel.set_title(title, fontsize=7, color="green" if hit else "black")
        text = row["caption"] if len(row["caption"]) <= 90 else row["caption"][:87] + "..."
        # a caption may hold a dollar sign, which matplotlib would read as mathematics
        panels[i * columns].text(0, -0.08, text, transform=panels[i * columns].transAxes, fontsize=7, va="top", parse_math=False)
    figure.savefig(path, dpi=150)


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)
