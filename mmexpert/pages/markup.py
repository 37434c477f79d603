"""The few elements that a page is made of. Every value goes through text(): captions, class and run names are foreign."""

import html
from collections.abc import Sequence
from typing import Any

from mmexpert.pages.style import STYLE

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_LONGEST, _LONG = 400, 24  # characters of a value that are shown; of a cell that may break inside a word


def text(value: Any) -> str:
    """A value as HTML text or attribute; long ones are cut."""
    shown = number(value) if isinstance(value, (int, float)) else "" if value is None else str(value)
    return html.escape(shown if len(shown) <= _LONGEST else shown[: _LONGEST - 3] + "...", quote=True)


def number(value: Any) -> str:
    """A number in five digits; True and False as YAML has them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "", marked: Sequence[bool] = ()) -> str:
    """A table with a caption; cells are escaped, but for Markup. Columns of numbers stand to the right. marked: rows to be shaded."""
    if not rows:
        return ""
    right = [all(isinstance(row[i], (int, float, Digits, type(None))) for row in rows) for i in range(len(rows[0]))]
    top = "".join(f'<th scope="col"{_class(right[i])}>{text(name)}</th>' for i, name in enumerate(head))
    lines = []
    for place, row in enumerate(rows):
        first = f'<th scope="row"{_class(False, row[0])}>{cell(row[0])}</th>'
        cells = [first, *(f"<td{_class(right[i], row[i])}>{cell(row[i])}</td>" for i in range(1, len(row)))]
        lines.append(f"<tr{' class=mark' if place < len(marked) and marked[place] else ''}>{''.join(cells)}</tr>")
    beside = f" <span>{text(note)}</span>" if note else ""
    return (
        f'<div class="wide" tabindex="0"><table><caption><div>{text(caption)}{beside}</div></caption><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


class Markup(str):
    """HTML that is finished: everything foreign in it has been escaped."""


class Digits(str):
    """A number that is written already, in a column of numbers."""


def cell(value: Any) -> str:
    """A table cell's content."""
    return value if isinstance(value, Markup) else text(value)


def _class(right: bool, value: Any = None) -> str:
    """Numbers to the right; long words may break anywhere, but not into single letters."""
    long = isinstance(value, str) and not isinstance(value, Markup) and len(value) > _LONG
    return ' class="n"' if right else ' class="long"' if long else ""


def section(title: str, *blocks: str) -> str:
    """A headed part of the page; empty where it would hold nothing."""
    inner = "".join(blocks)
    return f'<section id="{anchor(title)}"><h2>{text(title)}</h2>{inner}</section>' if inner else ""


def anchor(title: str) -> str:
    """The id of a section: titles are this package's own words."""
    return title.lower().replace(" ", "-")


def folded(title: str, inner: str) -> str:
    """What is opened by a click, without a script."""
    return f"<details><summary>{text(title)}</summary>{inner}</details>" if inner else ""


def page(title: str, head: str, sections: Sequence[str]) -> str:
    """The whole document. sections: of section(), empty ones are left out."""
    kept = [one for one in sections if one]
    links = "".join(f'<a href="#{one.split(chr(34))[1]}">{one.split("<h2>")[1].split("</h2>")[0]}</a>' for one in kept)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body><header>{head}<nav>{links}</nav></header>"
        f"<main>{''.join(kept)}</main></body></html>\n"
    )
