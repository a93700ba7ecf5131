"""What the lessons show: drawings of boxes, arrows and matrices, in one set of colours, and tables of texts.

A drawing is an SVG with its own light ground, so that it reads in a light and a dark theme, and with a text for readers
who do not see it. `canvas` makes the sheet, measured in the same units that `box`, `arrow` and `matrix` are placed in
(one unit is 0.6 inch, y grows upward); `show` puts it on the screen.
"""

import io
import re
from html import escape

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

UNIT = 0.6  # inches
INK, SOFT, GROUND = "#1c2128", "#7a8490", "#fbfbf8"
# edge and fill of what the lessons draw: the same thing has the same colour in all of them
COLOURS = {
    "plain": ("#57606a", "#ffffff"), "text": ("#57606a", "#eceff2"), "query": ("#1f6fb5", "#dcebf8"),
    "key": ("#b86e00", "#fdeccf"), "value": ("#2c7d4f", "#daf0e2"), "weight": ("#7a4bb0", "#ebe1f7"),
    "good": ("#2c7d4f", "#daf0e2"), "bad": ("#b42318", "#fbe0dd"),
}  # fmt: skip
SIGNED = "RdBu_r"  # the colour map of signed numbers: blue below zero, white at zero, red above


def signed(values):
    """Keyword arguments for `imshow` and the like: a diverging colour map whose white is exactly 0."""
    most = max((v for v in abs(values).flatten().tolist() if v < float("inf")), default=0) or 1.0  # not masked, not NaN
    return {"cmap": SIGNED, "vmin": -most, "vmax": most}


class Drawing:
    """What a cell shows: SVG, and in words for everybody who does not see it."""

    def __init__(self, svg, alt):
        self.svg, self.alt = svg, alt

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"image/svg+xml": self.svg, "text/plain": self.alt}


def canvas(width, height):
    """An empty sheet of width x height units; returns its axes."""
    figure = plt.figure(figsize=(width * UNIT, height * UNIT), facecolor=GROUND)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(0, height))
    axis.axis("off")
    return axis


def label(axis, x, y, text, size=10, colour=INK, **style):
    """Text centred on (x, y)."""
    axis.text(x, y, text, parse_math=False, **{"ha": "center", "va": "center", "size": size, "color": colour} | style)


def box(axis, x, y, text, colour="plain", width=2.0, height=0.8, size=10, **style):
    """A rounded box centred on (x, y) with a text in it; `colour` is a name in COLOURS."""
    edge, fill = COLOURS[colour]
    corner, shape = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=0.12"
    axis.add_patch(FancyBboxPatch(corner, width, height, shape, **{"ec": edge, "fc": fill, "lw": 1.4} | style))
    label(axis, x, y, text, size)


def arrow(axis, start, end, text="", colour="plain", bend=0.0, width=1.4, size=9, style="-|>", dashed=False):
    """An arrow from start to end, both (x, y), with a text at its middle; `bend` curves it."""
    ink = COLOURS[colour][0]
    shape = {"arrowstyle": style, "color": ink, "lw": width, "connectionstyle": f"arc3,rad={bend}",
             "linestyle": "--" if dashed else "-", "shrinkA": 0, "shrinkB": 0, "mutation_scale": 11}
    axis.annotate("", end, start, arrowprops=shape)
    if text:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        label(axis, x, y, text, size, ink, bbox={"fc": GROUND, "ec": "none", "pad": 1.5})


def matrix(axis, x, y, values, rows=(), columns=(), colour=None, form="{:.1f}", cell=0.8, size=9, hidden=None):
    """A table of numbers whose upper left corner is (x, y): `values` [rows, columns], of floats or of texts.

    `colour`: a name in COLOURS for all cells; None colours signed numbers by their value, white at 0.
    `hidden` [rows, columns]: cells to leave grey and empty (a mask). `rows`, `columns`: names beside and above.
    """
    values = values.tolist() if hasattr(values, "tolist") else [list(row) for row in values]
    numbers = [v for row in values for v in row if not isinstance(v, str) and abs(v) < float("inf")]
    most = max(map(abs, numbers), default=1) or 1
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            blank = hidden is not None and bool(hidden[i][j])
            coloured = colour is None and not isinstance(value, str)
            edge, fill = COLOURS[colour or "plain"]
            corner = (x + j * cell, y - (i + 1) * cell)
            fill = "#dfe3e7" if blank else plt.get_cmap(SIGNED)(0.5 + 0.35 * value / most) if coloured else fill
            axis.add_patch(plt.Rectangle(corner, cell, cell, ec=edge, fc=fill, lw=1))
            text = "" if blank else value if isinstance(value, str) else form.format(value)
            label(axis, corner[0] + cell / 2, corner[1] + cell / 2, text, size)
    for i, name in enumerate(rows):
        label(axis, x - 0.15, y - (i + 0.5) * cell, name, ha="right")
    for j, name in enumerate(columns):
        label(axis, x + (j + 0.5) * cell, y + 0.25, name)


def show(axis, alt):
    """The drawing of `axis`, to stand as the last line of a cell; `alt` says in words what is to be seen."""
    file = io.StringIO()
    with plt.rc_context({"svg.hashsalt": "drawing", "svg.fonttype": "path"}):
        axis.figure.savefig(file, format="svg", facecolor=GROUND, metadata={"Date": None, "Creator": None})
    plt.close(axis.figure)
    svg = re.sub(r"(<metadata>.*?</metadata>|<!--.*?-->)\s*", "", file.getvalue().partition("<svg")[2], flags=re.DOTALL)
    svg = re.sub(r"\s*\n\s*", " ", svg)  # a notebook stores each line as a string of its own: a fifth of the file
    title = f'<svg role="img" aria-label="{escape(alt)}" style="max-width: 100%; height: auto"'
    return Drawing((title + svg).replace(">", f"><title>{escape(alt)}</title>", 1), alt)


def show_table(header, rows, width=130):
    """Show rows of texts or numbers as a table; what is longer than `width` characters is cut, and ends in dots."""
    from IPython.display import Markdown, display  # not above: drawings are made without it

    def fitted(value):
        text = " ".join(str(value).replace("|", "/").split())
        return text if len(text) <= width else text[: width - 2] + " …"

    lines = [[*map(fitted, line)] for line in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    display(Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines)))
