"""Inline SVG for the report. Colours are CSS variables of the page: both schemes work."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from pipeline.durations import duration

WIDTH, HEIGHT = 420, 260  # of a chart, in SVG units
LEFT, TOP, BOTTOM = 56, 12, 44
RIGHT_OF_LABELS, RIGHT = 92, 12  # the margin with and without labels at the ends of lines
LABEL_GAP = 16  # between the labels at the ends of lines
NODE_WIDTH, NODE_HEIGHT, COLUMN_GAP, ROW_GAP = 170, 46, 44, 12
NAME_LENGTH = 19  # letters that fit a node


Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Node:
    """A stage in the picture of the graph."""

    name: str
    kind: str
    seconds: float
    inputs: tuple[str, ...]


def line_chart(lines: Mapping[str, Points], *, title: str, x_label: str, log: bool = False) -> str:
    """A chart of lines by name, each labelled at its end; empty where there is no point."""
    drawn = {name: points for name, every in lines.items() if (points := _drawable(every, log))}
    if not drawn:
        return ""
    values = [y for points in drawn.values() for _, y in points]
    last_x = max(x for points in drawn.values() for x, _ in points) or 1.0
    ticks = _log_ticks(values) if log else _linear_ticks(min(0.0, *values), max(values))
    low, high = ticks[0], ticks[-1]
    right = WIDTH - (RIGHT_OF_LABELS if any(drawn) else RIGHT)

    def place(x: float, y: float) -> tuple[float, float]:
        share = _share(y, low, high, log)
        return (
            LEFT + x / last_x * (right - LEFT),
            HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM),
        )

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(_spoken(title, drawn))}"><title>{escape(title)}</title>'
    ]
    parts += [_y_tick(tick, place(0, tick)[1], right) for tick in ticks]
    for tick in _linear_ticks(0.0, last_x, most=4):
        if tick <= last_x:
            x, bottom = place(tick, low)
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{bottom + 20:.1f}">{_short(tick)}</text>'
            )
    middle = (LEFT + right) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 4}">{escape(x_label)}</text>')
    ends = _apart([place(*points[-1])[1] for points in drawn.values()])
    for number, ((name, points), end) in enumerate(zip(drawn.items(), ends, strict=True)):
        places = [place(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        colour = f"var(--series-{number % 6 + 1})"
        if len(places) == 1:
            x, y = places[0]
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
        parts.append(f'<polyline class="line" points="{path}" stroke="{colour}"/>')
        parts.append(
            f'<text class="label" x="{right + 8}" y="{end + 5:.1f}" fill="{colour}">'
            f"{escape(name)}</text>"
        )
    return "".join([*parts, "</svg>"])


def graph_picture(nodes: Sequence[Node]) -> str:
    """The graph from left to right, every stage as late as its dependents allow."""
    columns = _columns(nodes)
    places = _places(columns)
    width = len(columns) * (NODE_WIDTH + COLUMN_GAP) - COLUMN_GAP + 4
    height = max(y for _, y in places.values()) + NODE_HEIGHT + 4
    slowest = max(node.seconds for node in nodes) or 1.0
    described = ", ".join(f"{node.name} {duration(node.seconds)}" for node in nodes)
    parts = [
        f'<svg class="graph" viewBox="-2 -2 {width} {height:.0f}" width="{width}" role="img" '
        f'aria-label="{escape(f"Stages and their times: {described}")}">'
    ]
    for node in nodes:
        x, y = places[node.name]
        for parent in _direct(node, nodes):
            from_x, from_y = places[parent]
            start, middle = from_x + NODE_WIDTH, (from_x + NODE_WIDTH + x) / 2
            parts.append(
                f'<path class="edge" d="M{start:.0f} {from_y + NODE_HEIGHT / 2:.1f} '
                f"C{middle:.0f} {from_y + NODE_HEIGHT / 2:.1f} {middle:.0f} "
                f'{y + NODE_HEIGHT / 2:.1f} {x:.0f} {y + NODE_HEIGHT / 2:.1f}"/>'
            )
    parts += [_box(node, places[node.name], slowest) for node in nodes]
    return "".join([*parts, "</svg>"])


def _drawable(points: Points, log: bool) -> Points:
    return [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not log)]


def _share(value: float, low: float, high: float, log: bool) -> float:
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low)


def _linear_ticks(low: float, high: float, *, most: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(
        power * factor
        for factor in (1, 2, 2.5, 5, 10)
        if power * factor * most >= span * (1 - 1e-9)
    )
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    return [round(step * i, 12) for i in range(first, max(last, first + 1) + 1)]


def _log_ticks(values: Sequence[float]) -> list[float]:
    """Round numbers around `values`, finer within a decade, thinned to a handful."""
    low, high = min(values), max(values)
    factors = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8) if high < 10 * low else (1, 2, 5)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    grid = [float(f"{factor}e{power}") for power in powers for factor in factors]
    first = max(i for i, tick in enumerate(grid) if tick <= low)
    last = min(i for i, tick in enumerate(grid) if tick >= high and i > first)
    ticks = grid[first : last + 1]
    stride = math.ceil((len(ticks) - 1) / 5) if len(ticks) > 6 else 1
    return ticks if stride == 1 else [*ticks[:-1:stride], ticks[-1]]


def _short(value: float) -> str:
    if value == 0:
        return "0"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{unit}"
    if abs(value) >= 1e-3:
        return f"{value:g}"
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"


def _y_tick(value: float, y: float, right: float) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick end" x="{LEFT - 8}" y="{y + 5:.1f}">{_short(value)}</text>'
    )


def _apart(positions: Sequence[float]) -> list[float]:
    """The positions moved so that labels there don't lie on each other."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    moved = list(positions)
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + LABEL_GAP)
    surplus = max(moved) - (HEIGHT - BOTTOM)
    return [each - max(0.0, surplus) for each in moved]


def _spoken(title: str, lines: Mapping[str, Points]) -> str:
    ends = (
        f"{name} from {_short(points[0][1])} to {_short(points[-1][1])}".strip()
        for name, points in lines.items()
    )
    return f"{title}: {'; '.join(ends)}"


def _columns(nodes: Sequence[Node]) -> list[list[Node]]:
    until_end: dict[str, int] = {node.name: 0 for node in nodes}
    for node in reversed(nodes):  # every node stands after its inputs
        for parent in node.inputs:
            until_end[parent] = max(until_end[parent], until_end[node.name] + 1)
    last = max(until_end.values())
    columns: list[list[Node]] = [[] for _ in range(last + 1)]
    for node in nodes:
        columns[last - until_end[node.name]].append(node)
    return columns


def _places(columns: Sequence[Sequence[Node]]) -> dict[str, tuple[float, float]]:
    """The top left corner of every node; columns are centred on the tallest."""
    pitch = NODE_HEIGHT + ROW_GAP
    tallest = max(len(column) for column in columns) * pitch - ROW_GAP
    places: dict[str, tuple[float, float]] = {}
    for number, column in enumerate(columns):
        top = (tallest - (len(column) * pitch - ROW_GAP)) / 2
        ordered = sorted(column, key=lambda node: _height_of_inputs(node, places))
        for row, node in enumerate(ordered):
            places[node.name] = (number * (NODE_WIDTH + COLUMN_GAP), top + row * pitch)
    return places


def _height_of_inputs(node: Node, places: Mapping[str, tuple[float, float]]) -> float:
    heights = [places[name][1] for name in node.inputs if name in places]
    return sum(heights) / len(heights) if heights else 0.0


def _direct(node: Node, nodes: Sequence[Node]) -> list[str]:
    """The inputs that aren't inputs of another input too: the picture needs no more lines."""
    inputs = {each.name: set(each.inputs) for each in nodes}
    beyond: set[str] = set()
    pending = [name for parent in node.inputs for name in inputs[parent]]
    while pending:
        name = pending.pop()
        if name not in beyond:
            beyond.add(name)
            pending += inputs[name]
    return [name for name in dict.fromkeys(node.inputs) if name not in beyond]


def _box(node: Node, place: tuple[float, float], slowest: float) -> str:
    x, y = place
    share = node.seconds / slowest
    name = re.sub(rf"^{re.escape(node.kind)}[-@]", "", node.name)
    name = name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"
    below = duration(node.seconds)
    if name != node.name:
        below = f"{node.kind} · {below}"
    return (
        f'<g class="node {escape(node.kind)}"><title>{escape(node.name)}</title>'
        f'<rect class="box" x="{x}" y="{y:.1f}" width="{NODE_WIDTH}" '
        f'height="{NODE_HEIGHT}" rx="7"/>'
        f'<rect class="time" x="{x + 11}" y="{y + NODE_HEIGHT - 8:.1f}" '
        f'width="{max(2.0, share * (NODE_WIDTH - 22)):.1f}" height="3" rx="1.5"/>'
        f'<text class="name" x="{x + 11}" y="{y + 18:.1f}">{escape(name)}</text>'
        f'<text class="seconds" x="{x + 11}" y="{y + 33:.1f}">{escape(below)}</text>'
        "</g>"
    )
