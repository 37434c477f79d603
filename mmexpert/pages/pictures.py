"""What a run's evaluation looked like: examples with their pictures, the map of scores, the confusion matrix, the per-class table."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from mmexpert.pages.markup import Markup, folded, number, table, text
from mmexpert.pages.stored import StoredRun

_ANCHORS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # viridis, from dark to bright
_MOST_CLASSES = 30  # of a confusion matrix that is drawn whole
_MOST_ROWS = 200


def example_cards(run: StoredRun, pictures: bool) -> str:
    """The queries with what was found, scores and ranks. pictures: False leaves them out, where the page would be too large."""
    stored = run.json("examples.json")
    if not stored.get("examples"):
        return ""
    views = {name: [picture_url(name, one) for one in stack] for name, stack in run.thumbnails.items()} if pictures else {}
    cards = "".join(_card(row, views) for row in stored["examples"])
    score = stored.get("score")
    score = score if score in ("cosine", "probability") else f"{score} score"
    told = f"{len(stored['examples'])} queries of the {stored.get('part')} part, chosen {stored.get('choice')}. "
    told += f"Beside each result its {score}; green: right."
    shown = f" Views of a clip: {', '.join(name.replace('_', ' ') for name in views)}." if len(views) > 1 else ""
    return f'<p class="soft">{text(told + shown)}</p><div class="examples">{cards}</div>'


def _card(row: dict[str, Any], views: dict[str, list[str]]) -> str:
    query, results = row["query"], row["results"]
    sheet = views and not any(result.get("text") for result in results)  # pictures alone stand side by side
    found = "".join(_result(result, views) for result in results)
    way = str(row["direction"]).replace("_", " ")
    asked = f'<p>{text(query.get("text", ""))}<br><span class="soft">{text(query.get("id", ""))}</span></p>'
    return (
        f'<article class="example{" sheet" if sheet else ""}"><h3>{text(way)} <span class="soft">rank {text(row["rank"])}</span></h3>'
        f'<div class="ask">{_pictures(query, views)}{asked}</div><ol class="found">{found}</ol></article>'
    )


def _result(result: dict[str, Any], views: dict[str, list[str]]) -> str:
    right = "right" if result.get("right") else ""
    score = f"{result['score']:.3f}" if isinstance(result.get("score"), (int, float)) else ""
    score = f'<span class="score {right}">{"&#10003; " if right else ""}{score}</span>'
    name = result.get("text") or result.get("id", "")
    drawn = _pictures(result, views)
    return f'<li>{drawn}{score}<span class="{right}">{text(name)}</span></li>'


def _pictures(end: dict[str, Any], views: dict[str, list[str]]) -> str:
    place = end.get("picture")
    if not isinstance(place, int):
        return ""
    drawn = [(name, urls[place]) for name, urls in views.items() if 0 <= place < len(urls)]
    alike = "".join(f'<img alt="{text(name.replace("_", " "))} of {text(end.get("id", ""))}" src="{url}">' for name, url in drawn)
    return f'<span class="pics">{alike}</span>' if drawn else ""


def picture_url(name: str, values: np.ndarray) -> str:
    """A picture uint8 [h, w] or [h, w, 3] as a data address; a view of radar (any name but image) is coloured from dark to bright."""
    picture = Image.fromarray(values)
    if values.ndim == 2 and name != "image":
        picture.putpalette(_palette())
    file = io.BytesIO()
    if picture.mode == "P":
        picture.save(file, "PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    picture.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _palette() -> list[int]:
    places = np.linspace(0, len(_ANCHORS) - 1, 256)
    return (
        np.stack([np.interp(places, range(len(_ANCHORS)), channel) for channel in zip(*_ANCHORS, strict=True)], 1)
        .round()
        .astype(int)
        .ravel()
        .tolist()
    )


def heat_map(run: StoredRun) -> str:
    """The stored scores, darker where higher; of queries and their targets as a square, of classes as a table with the figures."""
    heat = run.json("examples.json").get("heat_map")
    if not heat or not heat.get("values"):
        return ""
    values = np.array([[np.nan if value is None else value for value in line] for line in heat["values"]], float)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    shade = np.nan_to_num((values - low) / max(high - low, 1e-12))
    told = f"{heat['caption']}. From {number(low)} (lightest) to {number(high)}."
    if "cosine" in heat["caption"] or "probability" in heat["caption"]:
        return _shaded(told, "", heat["rows"], heat["columns"], values, shade)
    return _square(told, heat, values, shade)


def _square(told: str, heat: dict[str, Any], values: np.ndarray, shade: np.ndarray) -> str:
    cells = []
    for i, line in enumerate(shade):
        for j, one in enumerate(line):
            cells.append(
                f'<rect x="{j}" y="{i}" width="1" height="1" fill-opacity="{one:.2f}"{" class=own" if i == j else ""}>'
                f"<title>{i + 1}, {j + 1}: {values[i, j]:.3f}</title></rect>"
            )
    named = [(str(i + 1), query, target) for i, (query, target) in enumerate(zip(heat["rows"], heat["columns"], strict=True))]
    listed = table("Rows and columns", ("number", "query", "target"), named)
    box = f"0 0 {shade.shape[1]} {shade.shape[0]}"
    return (
        f'<figure class="square"><svg viewBox="{box}" role="img" aria-label="{text(told)}">{"".join(cells)}</svg>'
        f"<figcaption>{text(told)}</figcaption></figure>" + folded("which row is which", listed)
    )


def confusion_table(run: StoredRun) -> str:
    """Counts shaded by the share of the row; of many classes the most frequent confusions alone."""
    rows = run.rows("confusion.csv")
    if not rows:
        return ""
    names = [name for name in rows[0] if name != "truth"]
    counts = np.array([[float(row.get(name) or 0) for name in names] for row in rows])
    if len(names) > _MOST_CLASSES:
        wrong = [
            (int(counts[i, j]), row["truth"], name) for i, row in enumerate(rows) for j, name in enumerate(names) if row["truth"] != name
        ]
        most = [(truth, name, count) for count, truth, name in sorted(wrong, key=lambda one: -one[0])[:_MOST_CLASSES] if count]
        return table(f"The most frequent confusions of {len(names)} classes", ("truth", "told as", "samples"), most)
    shade = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return _shaded(
        "Confusion: samples by truth (rows) and prediction (columns), shaded by the share of the row",
        "truth",
        [row["truth"] for row in rows],
        names,
        counts,
        shade,
    )


def _shaded(caption: str, corner: str, rows: list[str], names: list[str], values: np.ndarray, shade: np.ndarray) -> str:
    """A table of figures on shaded cells."""
    head = "".join(f'<th scope="col"><span>{text(str(name).replace("_", " "))}</span></th>' for name in names)
    lines = []
    for name, line, dark in zip(rows, values, shade, strict=True):
        cells = "".join(
            f'<td style="background:rgba(var(--heat),{0.7 * alpha:.2f})">{"" if np.isnan(value) else f"{value:.3g}"}</td>'
            for value, alpha in zip(line, dark, strict=True)
        )
        lines.append(f'<tr><th scope="row">{text(str(name).replace("_", " "))}</th>{cells}</tr>')
    return (
        f'<div class="wide" tabindex="0"><table class="counts"><caption><div>{text(caption)}</div></caption>'
        f'<thead><tr><th scope="col">{text(corner)}</th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def per_class_table(run: StoredRun) -> str:
    """per_class.csv with the bounds of a figure beside it."""
    rows = run.rows("per_class.csv")
    if not rows:
        return ""
    names = [name for name in rows[0] if not name.endswith(("_lo", "_hi"))]
    lines = [[_bounded(row, name) for name in names] for row in rows[:_MOST_ROWS]]
    note = (
        f"the first {_MOST_ROWS} of {len(rows)}; per_class.csv has all" if len(rows) > _MOST_ROWS else "in brackets: 95 % interval (Wilson)"
    )
    return table("Per class", [name.replace("_", " ") for name in names], lines, note)


def _bounded(row: dict[str, str], name: str) -> Any:
    value, low, high = (_parsed(row.get(key, "")) for key in (name, f"{name}_lo", f"{name}_hi"))
    if not isinstance(value, float) or not isinstance(low, float) or not isinstance(high, float):
        return value if name != "n" or not isinstance(value, float) else int(value)
    return Markup(f'{value:.3f} <span class="soft">[{low:.2f}, {high:.2f}]</span>')


def _parsed(cell: str) -> Any:
    if not cell:
        return None
    try:
        return float(cell)
    except ValueError:
        return cell
