"""Line charts as inline SVG: no script, colours from the page's style, legends as text below."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmexpert.pages.markup import text

_WIDTH, _HEIGHT = 420, 250  # of the drawing, in its own units; it scales with its column
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 34
_MOST, _DOTS = 600, 40  # points of a line, more would not be seen; points that are dots with their value
_DASHES = ("", "7 3", "2 3", "9 3 2 3")


@dataclass(frozen=True)
class Line:
    """A series: (place, value) pairs; places are whole numbers, a value of None is a gap."""

    name: str
    points: Sequence[tuple[float, float | None]]


def chart(
    title: str, across: str, lines: Sequence[Line], level: tuple[str, float] | None = None, mark: tuple[str, float] | None = None
) -> str:
    """A figure; empty where no line has a value. level: a dashed horizontal line and its name. mark: a vertical one (the best epoch)."""
    lines = [line for line in lines if any(_known(value) for _, value in line.points)]
    if not lines:
        return ""
    xs = [x for line in lines for x, value in line.points if _known(value)]
    ys = [value for line in lines for _, value in line.points if _known(value)] + ([level[1]] if level else [])
    ticks, (low, high, up) = _axis(min(xs), max(xs), 5, 1.0)[2], _axis(min(ys), max(ys), 4, 0.0)
    at = _Place(min(xs), max(xs), low, high) if max(xs) > min(xs) else _Place(min(xs) - 1, max(xs) + 1, low, high)
    drawn = [_grid(at, [x for x in ticks if at.x0 <= x <= at.x1], up, across)]
    if level:
        y = at.y(level[1])
        drawn.append(
            f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"><title>{text(level[0])}</title></line>'
        )
    if mark and at.x0 <= mark[1] <= at.x1:
        x = at.x(mark[1])
        drawn.append(
            f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"><title>{text(mark[0])}</title></line>'
        )
    legend = []
    for place, line in enumerate(lines):
        colour, dash = f"var(--s{place % 8})", _DASHES[place // 8 % len(_DASHES)]
        drawn.append(
            f'<path style="stroke:{colour}" stroke-dasharray="{dash}" d="{_path(at, line)}"><title>{text(line.name)}</title></path>'
        )
        drawn += [_dot(at, x, value, colour, line.name) for x, value in line.points if _known(value) and len(line.points) <= _DOTS]
        legend.append(f'<span class="key-line"><i style="border-top-color:{colour}"></i>{text(line.name)}</span>')
    if told := [one[0] for one in (level, mark) if one]:
        legend.append(f'<span class="soft">dashed: {text("; ".join(told))}</span>')
    label = f"{title}: {', '.join(line.name for line in lines)}"
    return (
        f'<figure class="chart"><h3>{text(title)}</h3><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{text(label)}">'
        f"{''.join(drawn)}</svg><figcaption>{''.join(legend)}</figcaption></figure>"
    )


def _dot(at: "_Place", x: float, value: float, colour: str, name: str) -> str:
    told = f"{text(name)}: {text(value)} at {text(x)}"
    return f'<circle cx="{at.x(x):.1f}" cy="{at.y(value):.1f}" r="2.6" style="fill:{colour}"><title>{told}</title></circle>'


@dataclass(frozen=True)
class _Place:
    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, value: float) -> float:
        """Units from the left."""
        return _LEFT + (value - self.x0) / (self.x1 - self.x0) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Units from the top."""
        return _HEIGHT - _BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (_HEIGHT - _TOP - _BOTTOM)


def _grid(at: _Place, xs: Sequence[float], ys: Sequence[float], across: str) -> str:
    down = _HEIGHT - _BOTTOM
    parts = []
    for value in ys:
        y = at.y(value)
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for value in xs:
        parts.append(f'<text x="{at.x(value):.1f}" y="{down + 15}" text-anchor="middle">{value:.6g}</text>')
    parts.append(f'<text x="{(_WIDTH + _LEFT) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">{text(across)}</text>')
    return "".join(parts)


def _axis(low: float, high: float, wanted: int, least: float) -> tuple[float, float, list[float]]:
    """(begin, end, ticks at 1, 2 or 5 times a power of ten) around the values. least: of a step."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        half = abs(high) / 2 or 0.5
        low, high = low - half, high + half
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough * 0.999)
    step = max(step, least)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [round(place * step, 12) for place in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks


def _path(at: _Place, line: Line) -> str:
    every = max(1, math.ceil(len(line.points) / _MOST))
    parts, pen = [], "M"
    for x, value in line.points[::every]:
        if _known(value):
            parts.append(f"{pen}{at.x(x):.1f} {at.y(value):.1f}")
        pen = "L" if _known(value) else "M"
    return "".join(parts)


def _known(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
