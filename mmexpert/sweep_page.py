"""A table of runs as Markdown, CSV and a page. Names, values and errors are foreign text: every cell is escaped."""

import html
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from mmexpert.engine.files import csv_text
from mmexpert.sweep_rows import RunRow, differing, seed_rows

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}caption{text-align:left;font-weight:600}
td,th{border:1px solid #8888;padding:.2rem .6rem;text-align:left;vertical-align:top}td.n{text-align:right}"""
_LONGEST = 60  # characters of an error or a value on the screen


def markdown(rows: Sequence[RunRow], columns: Sequence[str], top: int | None) -> str:
    """A Markdown table that is aligned on a terminal too: what differs, state, epochs, figures, seconds, error, folder; then the seeds."""
    keys = differing(rows)
    shown = list(range(len(rows)))[:top]
    head = [*keys, "state", "epochs", *columns, "seconds", *(["error"] if any(row.error for row in rows) else []), "folder"]
    lines = []
    for number in shown:
        row = rows[number]
        figures = [_number(row.figures.get(name)) for name in columns]
        error = [row.error] if "error" in head else []
        lines.append([*(keys[key][number] for key in keys), row.state, row.epochs, *figures, f"{row.seconds:.0f}", *error, row.folder])
    text = _pipes(head, lines, len(head) - 1)
    if len(shown) < len(rows):
        text += f"{len(rows) - len(shown)} more rows: leave out --top\n"
    head, lines = seed_table(rows, columns)
    return text + (f"\nmean ± sd over seeds\n{_pipes(head, lines, len(head))}" if lines else "")


def seed_table(rows: Sequence[RunRow], columns: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """(head, lines) of the means over runs that differ in their seed alone; no lines where there are none."""
    groups = seed_rows(rows)
    keys = differing([RunRow("", group.config, "done") for group in groups])
    shown = [name for name in columns if any(name in group.figures for group in groups)]
    lines = []
    for number, group in enumerate(groups):
        cells = [" ± ".join(_number(value) for value in group.figures.get(name, ())) for name in shown]
        lines.append([*(keys[key][number] for key in keys), str(group.seeds), *cells])
    return [*keys, "seeds", *shown], lines


def csv_table(rows: Sequence[RunRow]) -> str:
    """CSV with all figures in full precision, and a row with means and one with sd for each group of seeds (column `state`)."""
    keys = differing(rows)
    table: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        cells = {key: keys[key][number] for key in keys}
        place = {"seconds": row.seconds, "error": row.error, "folder": row.folder}
        table.append({**cells, "state": row.state, "epochs": row.epochs, **row.figures, **place})
    groups = seed_rows(rows)
    for group in groups:
        same = next(i for i, row in enumerate(rows) if {key: v for key, v in row.config.items() if key != "seed"} == group.config)
        cells = {key: keys[key][same] for key in keys if key != "seed"}
        for place, name in enumerate((f"mean of {group.seeds} seeds", f"sd of {group.seeds} seeds")):
            table.append({**cells, "state": name, **{key: value[place] for key, value in group.figures.items()}})
    return csv_text(table)


def page(rows: Sequence[RunRow], columns: Sequence[str], title: str) -> str:
    """One HTML page without script or network; a row leads to its run's report."""
    keys = differing(rows)
    head = [*keys, "state", "epochs", *columns, "seconds", "error", "run"]
    body = []
    for number, row in enumerate(rows):
        cells = [_cell(keys[key][number]) for key in keys] + [_cell(row.state), _cell(row.epochs)]
        cells += [_cell(_number(row.figures.get(name)), True) for name in columns]
        link = f'<td><a href="{html.escape(quote(row.folder))}/report.html">{html.escape(row.folder)}</a></td>'
        body.append([*cells, _cell(f"{row.seconds:.0f}", True), _cell(row.error), link])
    tables = _table(f"{len(rows)} runs, best first", head, body)
    head, lines = seed_table(rows, columns)
    if lines:
        tables += _table("mean ± sd over seeds", head, [[_cell(cell) for cell in line] for line in lines])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>{tables}</body></html>\n"
    )


def _table(caption: str, head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    names = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in head)
    lines = "".join(f"<tr>{''.join(line)}</tr>" for line in body)
    return f"<table><caption>{html.escape(caption)}</caption><tr>{names}</tr>{lines}</table>"


def _cell(text: str, number: bool = False) -> str:
    return f"<td{' class=n' if number else ''}>{html.escape(text)}</td>"


def _pipes(head: Sequence[str], lines: Sequence[Sequence[str]], whole: int) -> str:
    """Columns from `whole` on are never cut: a folder's name is there to be copied."""
    table = [[_plain(cell, None if place >= whole else _LONGEST) for place, cell in enumerate(line)] for line in lines]
    names = [_plain(name, None) for name in head]
    widths = [max(len(line[place]) for line in [names, *table]) for place in range(len(head))]
    rows = [names, ["-" * width for width in widths], *table]
    return "".join(f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |\n" for line in rows)


def _plain(cell: str, longest: int | None) -> str:
    """One line without control characters, which a terminal would obey."""
    text = "".join(letter if letter.isprintable() else " " for letter in cell).replace("|", "\\|")
    return text if longest is None or len(text) <= longest else text[: longest - 1] + "…"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"
