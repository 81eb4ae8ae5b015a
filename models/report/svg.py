"""Figures as inline SVG: lines, bars, a heat map and scatters. Text is escaped; colours are the page's classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

__all__ = ["COLOURS", "Axis", "Panel", "Series", "axis", "bars", "heat", "lines", "paired_bars", "scatters"]

WIDTH = 760
COLOURS = 8
"""Classes `k0` to `k7` of the page; further series get them again, with another dash."""
DASHES = ("", "6 3", "2 3", "8 3 2 3")
LONGEST_NAME = 26
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis from `low` to `high`, with the places and words of its ticks."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True, slots=True)
class Series:
    """A line through points `(x, y)` in data units; a `strong` one is thick."""

    name: str
    points: tuple[Point, ...]
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One scatter: a title, places `(n, 2)` with the label `(n,)` of each, and the middles `(K, 2)` of all labels."""

    title: str
    xy: NDArray[np.float64]
    y: NDArray[np.integer]
    middles: NDArray[np.float64]


def axis(label: str, values: Sequence[float], *, low: float | None = None, high: float | None = None) -> Axis:
    """Make an axis over values with about five ticks at round numbers; `low` and `high` widen it."""
    bottom = min([*values, *([] if low is None else [low])])
    top = max([*values, *([] if high is None else [high])])
    if top <= bottom:
        bottom, top = bottom - 0.5, top + 0.5
    rough = (top - bottom) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough * 0.999)
    first, last = math.floor(bottom / step + 1e-9), math.ceil(top / step - 1e-9)
    ticks = tuple((i * step, f"{i * step:.10g}") for i in range(first, last + 1))
    return Axis(label, first * step, last * step, ticks)


def lines(key: str, title: str, words: str, series: Sequence[Series], x: Axis, y: Axis) -> str:
    """Lines with points over two axes, and a legend below; `words` describe the figure, `key` is unique on the page."""
    left, top, width, height = 62.0, 12.0, WIDTH - 80.0, 270.0
    body = [_frame(x, y, left, top, width, height)]
    legend = top + height + 58
    for i, s in sorted(enumerate(series), key=lambda pair: pair[1].strong):
        places = [(left + width * _share(a, x), top + height * (1 - _share(b, y))) for a, b in s.points]
        drawn = " ".join(f"{_n(a)},{_n(b)}" for a, b in places)
        look = f'class="k{i % COLOURS}{" strong" if s.strong else ""}"{_dash(i)}'
        body.append(f'<polyline {look} points="{drawn}"/>')
        if len(places) <= 40:
            body += [f'<circle class="f{i % COLOURS}" cx="{_n(a)}" cy="{_n(b)}" r="3"/>' for a, b in places]
        column, row = left + (i % 2) * width / 2, legend + (i // 2) * 18
        body.append(f'<line {look} x1="{_n(column)}" y1="{_n(row - 4)}" x2="{_n(column + 30)}" y2="{_n(row - 4)}"/>')
        body.append(_text(column + 36, row, _short(s.name, 44)))
    return _figure(key, title, words, WIDTH, legend + ((len(series) - 1) // 2) * 18 + 8, body)


def bars(key: str, title: str, words: str, rows: Sequence[tuple[str, float]], x: Axis) -> str:
    """One bar a row from zero, with its value."""
    left, top, each = 200.0, 8.0, 22.0
    width, height = WIDTH - left - 60, each * len(rows)
    body = [_across(x, left, top, width, height)]
    for i, (name, value) in enumerate(rows):
        at, long = top + i * each, width * _share(value, x)
        body.append(_text(left - 8, at + 15, _short(name), "end"))
        body.append(f'<rect class="f0" x="{_n(left)}" y="{_n(at + 4)}" width="{_n(long)}" height="{_n(each - 8)}"/>')
        body.append(_text(left + long + 5, at + 15, f"{value:.10g}"))
    return _figure(key, title, words, WIDTH, top + height + 44, body)


def paired_bars(
    key: str,
    title: str,
    words: str,
    rows: Sequence[tuple[str, float, float]],
    x: Axis,
    legend: tuple[str, str],
) -> str:
    """Two bars a row, before and after in the axis' unit; a row whose second is smaller is marked ▼ with the loss."""
    left, top, each = 190.0, 30.0, 26.0
    width, height = WIDTH - left - 90, each * len(rows)
    body = [_across(x, left, top, width, height)]
    for i, name in enumerate(legend):
        place = left + i * width / 2
        body.append(f'<rect class="{("before", "f0")[i]}" x="{_n(place)}" y="8" width="22" height="10"/>')
        body.append(_text(place + 28, 17, _short(name, 44)))
    for i, (name, before, after) in enumerate(rows):
        at, harmed = top + i * each, after < before
        body.append(_text(left - 8, at + 17, _short(name, 24), "end", "harm" if harmed else ""))
        for j, (value, look) in enumerate(((before, "before"), (after, "harmed" if harmed else "f0"))):
            long = _n(width * _share(value, x))
            body.append(f'<rect class="{look}" x="{_n(left)}" y="{_n(at + 4 + j * 10)}" width="{long}" height="9"/>')
        mark = f"▼ {after - before:.2f}" if harmed else f"+{after - before:.2f}"
        body.append(_text(left + width + 8, at + 17, mark, look="harm" if harmed else ""))
    return _figure(key, title, words, WIDTH, top + height + 44, body)


def heat(key: str, title: str, words: str, labels: Sequence[str], shares: NDArray[np.float64]) -> str:
    """A square of shares in [0, 1], the true label down and the decided one across; each cell says its percentage."""
    k = len(labels)
    left, top = 150.0, 120.0
    each = min(52.0, (WIDTH - left - 20) / k)
    body = []
    for i, name in enumerate(labels):
        middle = left + (i + 0.62) * each
        body.append(_text(left - 8, top + (i + 0.5) * each + 4, _short(name, 20), "end"))
        turned = f'transform="rotate(-55 {_n(middle)} {_n(top - 8)})"'
        body.append(f'<text x="{_n(middle)}" y="{_n(top - 8)}" {turned}>{escape(_short(name, 20))}</text>')
    for (i, j), share in np.ndenumerate(shares):
        x, y = left + j * each, top + i * each
        opacity = f'fill-opacity="{share:.2f}"'
        body.append(
            f'<rect class="cell" {opacity} x="{_n(x)}" y="{_n(y)}" width="{_n(each - 1)}" height="{_n(each - 1)}"/>'
        )
        if each >= 24 and share >= 0.0005:
            look = "on" if share > 0.5 else ""
            body.append(_text(x + each / 2, y + each / 2 + 4, f"{100 * share:.1f}", "middle", look))
    body.append(_text(left + k * each / 2, top + k * each + 20, "decided", "middle"))
    body.append(_text(left - 8, top - 8, "true", "end"))
    return _figure(key, title, words, max(left + k * each + 80, 420), top + k * each + 30, body)


def scatters(key: str, title: str, words: str, panels: Sequence[Panel], labels: Sequence[str]) -> str:
    """Scatters side by side on the same axes, a colour a label, its name and a ring at its middle."""
    side, gap, top = 370.0, 16.0, 26.0
    every = np.concatenate([part for p in panels for part in (p.xy, p.middles[np.unique(p.y)])])
    low, high = every.min(0), every.max(0)
    scale = (side - 24) / max(float((high - low).max()), 1e-9)
    middle = (low + high) / 2
    body = []
    for n, panel in enumerate(panels):
        left = n * (side + gap)
        body.append(f'<rect class="box" x="{_n(left)}" y="{_n(top)}" width="{_n(side)}" height="{_n(side)}"/>')
        body.append(_text(left, 16, panel.title))
        x, y = _places(panel.xy, middle, scale, left + side / 2, top + side / 2)
        at = np.stack(_places(panel.middles, middle, scale, left + side / 2, top + side / 2), 1)
        shown = [int(c) for c in np.unique(panel.y)]
        for c in shown:
            own = panel.y == c
            dots = "".join(f"M{_n(a)} {_n(b)}h0" for a, b in zip(x[own], y[own], strict=True))
            body.append(f'<path class="k{c % COLOURS} dots" d="{dots}"/>')
        for c in shown:
            a, b = at[c]
            body.append(f'<circle class="k{c % COLOURS} ring" cx="{_n(a)}" cy="{_n(b)}" r="7"/>')
        for c in shown:
            a, b = at[c]
            body.append(_text(float(a), float(b) - 10, _short(labels[c], 18), "middle", "halo"))
    return _figure(key, title, words, len(panels) * (side + gap) - gap, top + side + 4, body)


def _places(
    xy: NDArray[np.float64], middle: NDArray[np.float64], scale: float, left: float, top: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where points in data units lie on the page."""
    return left + (xy[:, 0] - middle[0]) * scale, top - (xy[:, 1] - middle[1]) * scale


def _figure(key: str, title: str, words: str, width: float, height: float, body: Sequence[str]) -> str:
    size = f'viewBox="0 0 {_n(width)} {_n(height)}" style="max-width:{_n(width)}px"'
    return (
        f'<svg role="img" aria-labelledby="{key}-t {key}-d" {size}>'
        f'<title id="{key}-t">{escape(title)}</title><desc id="{key}-d">{escape(words)}</desc>{"".join(body)}</svg>'
    )


def _frame(x: Axis, y: Axis, left: float, top: float, width: float, height: float) -> str:
    body = [_across(x, left, top, width, height)]
    for value, text in y.ticks:
        at = top + height * (1 - _share(value, y))
        body.append(_grid(left, at, left + width, at))
        body.append(_text(left - 6, at + 4, text, "end"))
    turn = f'transform="rotate(-90 14 {_n(top + height / 2)})" text-anchor="middle"'
    body.append(f'<text x="14" y="{_n(top + height / 2)}" {turn}>{escape(y.label)}</text>')
    return "".join(body)


def _across(x: Axis, left: float, top: float, width: float, height: float) -> str:
    body, end = [], -math.inf
    for value, text in x.ticks:
        at, shown = left + width * _share(value, x), _short(text, 20)
        body.append(_grid(at, top, at, top + height))
        half = 3.5 * len(shown)
        if at - half > end:  # else it would lie over the one before
            body.append(_text(at, top + height + 16, shown, "middle"))
            end = at + half
    body.append(_text(left + width / 2, top + height + 34, x.label, "middle"))
    return "".join(body)


def _grid(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"/>'


def _text(x: float, y: float, text: str, anchor: str = "", look: str = "") -> str:
    extra = (f' text-anchor="{anchor}"' if anchor else "") + (f' class="{look}"' if look else "")
    return f'<text x="{_n(x)}" y="{_n(y)}"{extra}>{escape(text)}</text>'


def _dash(i: int) -> str:
    dash = DASHES[(i + i // COLOURS) % len(DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _short(name: str, longest: int = LONGEST_NAME) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _share(value: float, a: Axis) -> float:
    return (value - a.low) / (a.high - a.low)


def _n(value: float) -> str:
    return f"{round(float(value), 1) + 0.0:g}"
