"""The loss over the steps as a small SVG, for notebooks: no library draws it, and it follows light and dark themes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

WIDTH, HEIGHT = 560, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 34
_MOST_POINTS = 240
_BEGINNING = 0.05  # of the steps: a first fall goes beyond the upper edge, so that the rest is not flat
_TRAINING, _HELD_OUT = "#6baed6", "#d94801"

Points = list[tuple[float, float]]


def loss_curve_svg(history: Sequence[dict[str, Any]]) -> str:
    """The picture, or an empty string where there is no loss yet."""
    training = _thinned([(r["step"], r["loss"]) for r in history if math.isfinite(r.get("loss", math.nan))])
    held_out = [(r["step"], r["eval_loss"]) for r in history if math.isfinite(r.get("eval_loss", math.nan))]
    if not training:
        return ""
    points = training + held_out
    last = max(step for step, _ in points) or 1
    shown = [loss for step, loss in points if step > _BEGINNING * last]
    ticks = _ticks(min(loss for _, loss in points), max(shown))
    low, high = ticks[0], ticks[-1]

    def place(point: tuple[float, float]) -> str:
        return f"{_x(point[0], last):.1f},{_y(point[1], low, high):.1f}"

    parts = [_grid(tick, low, high) for tick in ticks]
    parts += [_text(_x(step, last), HEIGHT - _BOTTOM + 16, f"{step:,.0f}", "middle") for step in (0, last / 2, last)]
    parts.append(_text(WIDTH / 2, HEIGHT - 3, "optimizer step", "middle"))
    lines = [_line(" ".join(map(place, training)), _TRAINING, 1.6)]
    if held_out:
        lines.append(_line(" ".join(map(place, held_out)), _HELD_OUT, 1.4))
        lines += [f'<circle cx="{x}" cy="{y}" r="3" fill="{_HELD_OUT}"/>' for x, y in (place(p).split(",") for p in held_out)]
    frame = f'x="{_LEFT - 4}" y="{_TOP - 4}" width="{WIDTH - _LEFT - _RIGHT + 8}" height="{HEIGHT - _TOP - _BOTTOM + 8}"'
    inner = f"0 0 {WIDTH - _LEFT - _RIGHT + 8} {HEIGHT - _TOP - _BOTTOM + 8}"
    corner = f"translate({4 - _LEFT},{4 - _TOP})"
    parts.append(f'<svg {frame} viewBox="{inner}" overflow="hidden"><g transform="{corner}">{"".join(lines)}</g></svg>')
    parts.append(_legend("training", _TRAINING, 0) + (_legend("held out", _HELD_OUT, 78) if held_out else ""))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="loss over the steps" font-family="sans-serif" font-size="11">{"".join(parts)}</svg>'
    )


def _thinned(points: Points) -> Points:
    """At most so many points, each the mean of its neighbours."""
    size = math.ceil(len(points) / _MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)] if points else []
    return [(sum(step for step, _ in g) / len(g), sum(loss for _, loss in g) / len(g)) for g in groups]


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers around the values, four to eight of them."""
    span = high - low or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span))
    step = next(unit * part for part in (0.1, 0.2, 0.25, 0.5, 1, 2) if span / (unit * part) <= 5)
    first, last = math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1)
    return [i * step for i in range(first, last + 1)]


def _x(step: float, last: float) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * step / last


def _y(loss: float, low: float, high: float) -> float:
    return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (loss - low) / (high - low)


def _grid(tick: float, low: float, high: float) -> str:
    y = _y(tick, low, high)
    line = f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" stroke-opacity="0.15"/>'
    return line + _text(_LEFT - 6, y + 4, f"{tick:.6g}", "end")


def _line(points: str, color: str, width: float) -> str:
    return f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="{width}" stroke-linejoin="round"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor">{text}</text>'


def _legend(name: str, color: str, left: int) -> str:
    x = WIDTH - _RIGHT - 150 + left
    return f'<rect x="{x}" y="{_TOP + 2}" width="12" height="3" fill="{color}"/>' + _text(x + 17, _TOP + 7, name, "start")
