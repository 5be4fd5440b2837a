"""Charts for a page: SVG and HTML that take their colors from the page's style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 38


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        x: in 0..1.
        y: in 0..1.
        style: class names of the style sheet: ``first``, ``second``, ``guide``.
        dots: whether the points are marked.
    """

    x: Sequence[float]
    y: Sequence[float]
    style: str
    dots: bool = False


def line_chart(series: Sequence[Series], x_label: str, y_label: str, name: str) -> str:
    """Draw lines over a unit square; ``name`` is the accessible description."""
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}" class="chart">'
    ]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y = _place(tick, tick)
        bottom, right = _place(0, 0)[1], _place(1, 1)[0]
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{right:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{tick:g}</text>')
    middle_x, middle_y = _place(0.5, 0.5)
    parts.append(
        f'<text class="axis" x="{middle_x:.1f}" y="{HEIGHT - 4}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    parts.append(
        f'<text class="axis" transform="translate(10 {middle_y:.1f}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    for line in series:
        places = [_place(x, y) for x, y in zip(line.x, line.y, strict=True)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="line {line.style}" points="{points}"/>')
        if line.dots:
            parts += [
                f'<circle class="dot {line.style}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
                for x, y in places
            ]
    return "".join([*parts, "</svg>"])


def _place(x: float, y: float) -> tuple[float, float]:
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    return LEFT + x * inner_width, TOP + (1 - y) * inner_height


def bars(rows: Sequence[tuple[str, str, Sequence[tuple[float, str]]]]) -> str:
    """Draw horizontal bars.

    Args:
        rows: name, explanation, and for each run a value and its text.
    """
    largest = max((value for _, _, values in rows for value, _ in values), default=0.0) or 1.0
    parts = ['<div class="bars">']
    for name, explanation, values in rows:
        parts.append(
            f'<div class="bar-name"><b>{escape(name)}</b><small>{escape(explanation)}</small></div>'
            '<div class="bar-values">'
        )
        for number, (value, text) in enumerate(values):
            style = ("first", "second")[number]
            parts.append(
                f'<div class="bar-row"><div class="bar {style}" '
                f'style="width:{70 * value / largest:.1f}%"></div><span>{escape(text)}</span></div>'
            )
        parts.append("</div>")
    return "".join([*parts, "</div>"])


def table(name: str, header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Build an HTML table; the first ``words`` columns are text, the others numbers."""
    kinds = ["name" if number < words else "number" for number in range(len(header))]

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag} class={kind}>{breakable(cell)}</{tag}>"
            for kind, cell in zip(kinds, row, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return _scrollable(
        name,
        f"<table><thead><tr>{cells('th', header)}</tr></thead><tbody>{body}</tbody></table>",
    )


def _scrollable(name: str, content: str) -> str:
    """Wrap content in a named box that can be scrolled by keyboard too."""
    label = escape(name)
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">{content}</div>'


def breakable(name: str) -> str:
    """Escape a name as HTML that breaks lines after underscores first."""
    return escape(name).replace("_", "_<wbr>")


def matrix(
    title: str, names: Sequence[str], counts: Sequence[Sequence[int]], last: tuple[str, str]
) -> str:
    """Build a confusion matrix, with each row shaded by its shares.

    Args:
        title: name of its box.
        names: class names.
        counts: ``(K + 1, K + 1)``, rows are the ground truth.
        last: names of the last row and the last column.
    """
    head = "".join(f"<th><span>{breakable(name)}</span></th>" for name in (*names, last[1]))
    rows = []
    for number, (name, row) in enumerate(zip((*names, last[0]), counts, strict=True)):
        total = sum(row) or 1
        cells = []
        for column, count in enumerate(row):
            share = count / total
            good = "good" if number == column else "bad"
            told = f"{name}: {count} of {sum(row)} ({share:.0%})"
            cells.append(
                f'<td class="{good}" style="--share:{100 * share:.0f}%" title="{escape(told)}">'
                f"{count or '<i>·</i>'}</td>"
            )
        rows.append(f"<tr><th><span>{breakable(name)}</span></th>{''.join(cells)}</tr>")
    return _scrollable(
        title,
        f'<table class="matrix" style="--columns:{len(names) + 1}"><thead><tr>'
        '<th class="corner">true ↓ predicted →</th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>",
    )
