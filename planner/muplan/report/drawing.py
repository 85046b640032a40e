"""How every report draws: one style, one set of colours, each picture an SVG in a data URI."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#8b93a1", "#0f8a5f", "#d98324", "#3d6fb6")
LIMIT_COLOUR = "#b3403a"
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa1ac",
    "axes.labelcolor": "#3a4250",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e6e9ee",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#5b6472",
    "ytick.color": "#5b6472",
    "legend.frameon": False,
    "svg.hashsalt": "muserve",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """One picture: ``uri`` is its SVG as a data URI, ``caption`` says how to read it."""

    title: str
    caption: str
    uri: str


def svg_uri(grid: tuple[int, int], height_in: float, draw: Callable[[Sequence[Axes]], None]) -> str:
    """An SVG of ``grid`` (rows, columns) axes that ``draw`` fills; the bytes depend on nothing else."""
    import matplotlib.style
    from matplotlib.figure import Figure

    rows, columns = grid
    with matplotlib.style.context(_STYLE):
        figure = Figure(figsize=(9.6, height_in), layout="constrained")
        draw(list(figure.subplots(rows, columns, squeeze=False, sharex=rows > 1).ravel()))
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
