"""Draw the collector's CPU per span beside the floor and the peers, as an SVG for the docs.

Bars lie on a logarithmic axis, since what is compared differs by a factor of a hundred; each carries its figure.
Colours follow the reader's light or dark theme.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.results import Case

_COLOURS: Final = {"floor": "#8a8f98", "auditspan": "#2f81f7", "interpreted": "#8fbdf9", "rotel": "#d97a34"}
_LEFT, _WIDTH, _RIGHT = 150, 470, 130
_BAR, _GAP, _TOP, _BOTTOM = 18, 20, 56, 46
_TICKS: Final = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_STYLE: Final = """<style>
text { font: 12px system-ui, sans-serif; fill: #24292f } .title { font-size: 15px; font-weight: 600 }
.quiet { fill: #6e7781 } line { stroke: #d0d7de }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .quiet { fill: #8d96a0 } line { stroke: #30363d } }
</style>"""


def draw(cases: Sequence[Case]) -> str:
    """The SVG for the *cases* of suite "collector" with one worker and the counting sink."""
    shown = [case for case in cases if case["workers"] == 1 and case["sink"] == "counting"]
    groups = sorted({case["tagged_pct"] for case in shown})
    values = [case["cpu_us_per_span"] for case in shown]
    low, high = _bounds(min(values), max(values))
    height = _TOP + len(shown) * _BAR + len(groups) * _GAP + _BOTTOM
    parts = _frame(low, high, height)
    at = float(_TOP)
    for group in groups:
        bars = [case for case in shown if case["tagged_pct"] == group]
        parts.append(_text(_LEFT - 84, at + len(bars) * _BAR / 2 + 4, f"{group}% tagged", anchor="end"))
        for case in bars:
            parts += _bar(case, at, low, high)
            at += _BAR
        at += _GAP
    width = _LEFT + _WIDTH + _RIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="CPU per span">\n{_STYLE}\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _bounds(low: float, high: float) -> tuple[float, float]:
    return (
        max((tick for tick in _TICKS if tick < low), default=_TICKS[0]),
        min((tick for tick in _TICKS if tick > high), default=_TICKS[-1]),
    )


def _frame(low: float, high: float, height: int) -> list[str]:
    parts = [
        _text(_LEFT - 130, 22, "CPU of the collector per span, microseconds", kind="title"),
        _text(_LEFT - 130, 40, "lower is better; logarithmic; (x floor)", kind="quiet"),
    ]
    for tick in (tick for tick in _TICKS if low <= tick <= high):
        x = _x(tick, low, high)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 6}" y2="{height - _BOTTOM + 8}"/>')
        parts.append(_text(x, height - _BOTTOM + 24, f"{tick:g}", kind="quiet", anchor="middle"))
    return parts


def _bar(case: Case, at: float, low: float, high: float) -> list[str]:
    value = case["cpu_us_per_span"]
    x = _x(value, low, high)
    colour = _COLOURS.get(case["system"], "#8250df")
    return [
        _text(_LEFT - 6, at + 13, case["system"], kind="quiet", anchor="end"),
        f'<rect x="{_LEFT}" y="{at + 2:.0f}" width="{x - _LEFT:.1f}" height="{_BAR - 4}" rx="2" fill="{colour}"/>',
        _text(x + 6, at + 13, f"{value:.2f} ({case['ratio_to_floor']:.1f}x)"),
    ]


def _x(value: float, low: float, high: float) -> float:
    return _LEFT + _WIDTH * math.log(value / low) / math.log(high / low)


def _text(x: float, y: float, text: str, *, kind: str = "", anchor: str = "start") -> str:
    chosen = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{chosen}>{text}</text>'
