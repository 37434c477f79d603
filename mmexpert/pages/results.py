"""Result tables: what was reached, its interval, the chance line; runs side by side only where the galleries are the same."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmexpert.metrics.statistics import wilson
from mmexpert.pages.markup import Digits, Markup, folded, number, table, text
from mmexpert.pages.stored import StoredRun

_CLASS_METRICS = ("acc", "balanced_acc", "macro_f1", "map", "macro_auroc", "group_acc", "probe_acc", "probe_balanced_acc")
_BEYOND = ("loss_", "lr")  # keys that are no shares


@dataclass(frozen=True)
class Figure:
    """A metric of a part. top: 100 of percent, 1 of shares, None of what has no upper end (median rank)."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    chance: float | None
    top: float | None


def figures(run: StoredRun, part: str) -> list[Figure]:
    """The metrics that stand for a part, by its protocol; R@K have Wilson's interval over the queries."""
    told = run.protocol[part]
    names = _headline(run, part, told)
    return [_figure(run, part, told, name) for name in names if isinstance(run.metrics.get(f"{part}/{name}"), (int, float))]


def _headline(run: StoredRun, part: str, told: dict[str, Any]) -> list[str]:
    if "directions" in told:
        names = [f"{way}_{key}" for way in told["directions"] for key in (*(f"R@{k}" for k in told["k"]), "median_rank", "MRR")]
        return [*names, "RSum", *(key.partition("/")[2] for key in run.metrics if key.startswith(f"{part}/hard_"))]
    return list(told["shown"]) if "shown" in told else list(_CLASS_METRICS)


def _figure(run: StoredRun, part: str, told: dict[str, Any], name: str) -> Figure:
    metrics = run.metrics
    low, high = (metrics.get(f"{part}/{name}_{end}") for end in ("lo", "hi"))
    direction, _, k = name.partition("_R@")
    hits, queries = metrics.get(f"{part}/{direction}_hits@{k}"), metrics.get(f"{part}/{direction}_queries")
    if k and hits is not None and queries:
        low, high = (100 * bound for bound in wilson(int(hits), int(queries)))
    chance = told.get("chance", {}).get(name, 50.0 if name.startswith("hard_") else None)
    return Figure(name, metrics.get(f"{part}/{name}"), low, high, chance, _top(name, "directions" in told or "shown" in told))


def _top(name: str, percent: bool) -> float | None:
    if "rank" in name or name == "RSum" or name.startswith(_BEYOND):
        return None
    return 100.0 if percent and not name.endswith("MRR") else 1.0


def gallery_text(told: dict[str, Any]) -> str:
    """What a figure was measured against, in words: without it a recall says nothing."""
    data = f"{told.get('part', '?')} part of {told.get('dataset', '?')}"
    if "directions" in told:
        return f"{data}: {told['queries']} queries, gallery {told['gallery']}, ranked by {told['rank_by']} scores, ties {told['ties']}"
    if "shown" in told:
        sizes = ", ".join(f"{name} {size}" for name, size in told.get("gallery_sizes", {}).items())
        partial = ", PARTIAL: pictures are missing" if told.get("partial") else ""
        return f"{data}: {told.get('queries')} queries, gallery {sizes}, {told.get('protocol')} protocol, ties {told.get('ties')}{partial}"
    return f"{data}: {told.get('rows')} rows, {told.get('groups')} groups, {told.get('n_classes_used')} classes, by {told.get('by')}"


def result_tables(run: StoredRun) -> str:
    """A table a scored part, with chance lines and intervals; then all metrics, folded away."""
    blocks = []
    for part, told in run.protocol.items():
        found = figures(run, part)
        rows = [
            (
                figure.name.replace("_", " "),
                digits(figure.value, figure.top),
                Markup(meter(figure)),
                interval(figure.low, figure.high, figure.top),
                digits(figure.chance, figure.top),
            )
            for figure in found
        ]
        blocks.append(table(gallery_text(told), ("metric", "value", "", "95 %", "chance"), rows))
        if any("_R@" in figure.name and figure.low is not None for figure in found):
            hard = "; hard: the own caption above the same with one attribute changed, in percent" if _has_hard(found) else ""
            blocks.append(f'<p class="soft">R@K in percent{hard}; intervals: Wilson, over the queries. Red line: chance.</p>')
        elif any(figure.low is not None for figure in found):
            blocks.append('<p class="soft">Intervals: bootstrap over groups. Red line: chance.</p>')
    rows = [(key, value) for key, value in run.metrics.items() if key != "protocol"]
    blocks.append(folded(f"all {len(rows)} metrics", table("Metrics", ("key", "value"), rows)) if rows else "")
    told = [(f"{part}: {key}", _flat_text(value)) for part, protocol in run.protocol.items() for key, value in protocol.items()]
    blocks.append(folded("how they were measured", table("Protocol", ("key", "value"), told)))
    return "".join(blocks)


def _has_hard(found: Sequence[Figure]) -> bool:
    return any(figure.name.startswith("hard_") for figure in found)


def fold_tables(run: StoredRun) -> str:
    """Means over folds with both intervals and chance, and each fold's own value; warnings first."""
    summary = run.summary
    if not summary:
        return ""
    entries = {key.removeprefix("test/"): entry for key, entry in (summary["metrics"] | summary["group_metrics"]).items()}
    shown = [key for key in _CLASS_METRICS if key in entries] or [key for key in entries if "_R@" in key and "valid/" not in key]
    headline = summary.get("headline", "").removeprefix("test/")
    shown = [headline, *(key for key in shown if key != headline)] if headline in entries else shown
    rows = [_fold_row(key, entries[key]) for key in shown]
    folds = summary["folds_done"]
    caption = f"Means over {len(folds)} folds, {summary['groups']} groups, selection {summary['selection']}"
    note = "corrected: Nadeau and Bengio's t interval over folds; bootstrap: groups drawn within fold and class; training varies more"
    head = ("metric", "mean", "", "sd", "95 % corrected", "95 % bootstrap", "chance", *(f"fold {number}" for number in folds))
    warnings = "".join(f'<p class="warn">{text(warning)}</p>' for warning in summary.get("warnings", []))
    external = summary.get("external", {}).get("metrics", {})
    outside = table("The data set's own test part, by the mean of the fold models", ("metric", "value"), list(external.items()))
    return warnings + table(caption, head, rows, note) + outside + _fold_states(run)


def _fold_row(key: str, entry: dict[str, Any]) -> tuple[Any, ...]:
    top = _top(key, "_R@" in key)
    shown = Figure(key, entry["mean"], *(entry["ci95_corrected"] or (None, None)), entry["chance"], top)
    bounds = (interval(*(entry[name] or (None, None)), top) for name in ("ci95_corrected", "ci95_bootstrap"))
    numbers = [digits(value, top) for value in (entry["mean"], entry["sd"], entry["chance"], *entry["folds"])]
    return (key.replace("_", " "), numbers[0], Markup(meter(shown)), numbers[1], *bounds, *numbers[2:])


def _fold_states(run: StoredRun) -> str:
    rows = []
    for fold in run.folds:
        status, metrics = fold.json("status.json"), fold.metrics
        best = f"{metrics.get('monitor')} {number(metrics.get('best_value'))}" if metrics.get("best_value") is not None else ""
        rows.append((fold.label, status.get("state"), status.get("epoch"), status.get("best_epoch"), best, status.get("seconds")))
    return table("Where each fold stands", ("fold", "state", "epoch", "best epoch", "monitored value", "seconds"), rows)


def side_by_side(runs: Sequence[StoredRun]) -> str:
    """A table for each part and gallery: runs are rows, so that no column holds figures of different galleries."""
    together: dict[tuple[str, ...], list[tuple[StoredRun, str]]] = {}
    for run in runs:
        for part in run.protocol:
            together.setdefault(_gallery_key(run, part), []).append((run, part))
    blocks = []
    for group in together.values():
        told = [run.protocol[part] for run, part in group]
        found = [{figure.name: figure for figure in figures(run, part)} for run, part in group]
        names = list(dict.fromkeys(name for one in found for name in one))
        tops = {name: next(one[name].top for one in found if name in one) for name in names}
        chance = {name: next((one[name].chance for one in found if name in one), None) for name in names}
        rows = [(run.short, *(_shown(one.get(name)) for name in names)) for (run, _), one in zip(group, found, strict=True)]
        rows.append(("chance", *(digits(chance[name], tops[name]) for name in names)))
        notes = (
            ["ranked by different scores: " + ", ".join(sorted({str(one["rank_by"]) for one in told}))] if _differ(told, "rank_by") else []
        )
        notes += ["trained on data of different fingerprints"] if _differ(told, "fingerprint_data") else []
        blocks.append(table(gallery_text(told[0]), ("run", *(name.replace("_", " ") for name in names)), rows, "; ".join(notes)))
    return "".join(blocks) + _folds_side_by_side(runs)


def _shown(figure: Figure | None) -> Digits:
    return Digits("") if figure is None else digits(figure.value, figure.top)


def _folds_side_by_side(runs: Sequence[StoredRun]) -> str:
    """Means over folds, a table for each set of rows: the test parts of other rows are other galleries."""
    together: dict[tuple[str, ...], list[StoredRun]] = {}
    for run in runs:
        if run.summary:
            together.setdefault((str(run.summary.get("rows_fingerprint")), str(len(run.summary["folds_done"]))), []).append(run)
    blocks = []
    for group in together.values():
        rows = []
        for run in group:
            key = run.summary.get("headline", "")
            entry = (run.summary["metrics"] | run.summary["group_metrics"]).get(key)
            if entry:
                bounds = interval(*(entry["ci95_corrected"] or (None, None)), None)
                rows.append((run.short, key, entry["mean"], entry["sd"], bounds, entry["chance"]))
        head = ("run", "metric", "mean", "sd", "95 % corrected", "chance")
        count = len(group[0].summary["folds_done"])
        blocks.append(table(f"Means over {count} folds of the same rows", head, rows, "python -m mmexpert.cv compare says what differs"))
    return "".join(blocks)


def _gallery_key(run: StoredRun, part: str) -> tuple[str, ...]:
    """Equal where figures may stand in one column."""
    told, metrics = run.protocol[part], run.metrics
    names = (
        "dataset",
        "protocol",
        "queries",
        "gallery",
        "gallery_sizes",
        "ties",
        "rows",
        "groups",
        "n_classes_used",
        "folds_of",
        "small_gallery",
    )
    sizes = sorted(
        (key, str(value)) for key, value in metrics.items() if key.startswith(f"{part}/") and key.endswith(("_gallery", "_queries"))
    )
    return (part, *(str(told.get(name)) for name in names), str(sizes))


def _differ(told: Sequence[dict[str, Any]], key: str) -> bool:
    return len({str(one.get(key)) for one in told}) > 1


def meter(figure: Figure) -> str:
    """A bar over the metric's range with its interval and a red line at chance; empty for what has no range."""
    if figure.top is None or figure.value is None:
        return ""

    def at(value: float) -> float:
        return round(130 * min(1.0, max(0.0, value / figure.top)), 1)

    parts = [
        '<rect class="track" x="0" y="5" width="130" height="4"/>',
        f'<rect class="bar" x="0" y="3" width="{at(figure.value)}" height="8"/>',
    ]
    if figure.low is not None and figure.high is not None:
        parts.append(f'<line x1="{at(figure.low)}" x2="{at(figure.high)}" y1="7" y2="7"/>')
    if figure.chance is not None:
        parts.append(f'<line class="chance" x1="{at(figure.chance)}" x2="{at(figure.chance)}" y1="0" y2="14"/>')
    return f'<svg class="meter" viewBox="0 0 130 14" aria-hidden="true">{"".join(parts)}</svg>'


def digits(value: float | None, top: float | None) -> Digits:
    """Percent with one place, shares with three, the rest as it comes; empty for None."""
    if value is None:
        return Digits("")
    return Digits(f"{value:.1f}" if top == 100 else f"{value:.3f}" if top == 1 else number(value))


def interval(low: float | None, high: float | None, top: float | None) -> Digits:
    """`0.410 .. 0.630`; empty where there is none."""
    return Digits("" if low is None or high is None else f"{digits(low, top)} .. {digits(high, top)}")


def _flat_text(value: Any) -> str:
    return ", ".join(f"{key} {number(inner)}" for key, inner in value.items()) if isinstance(value, dict) else number(value)
