"""Pictures of a predictor: is what it expects what comes, and which classes it takes for which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muserve.errors import InputError

Floats = NDArray[np.float64]
BINS = 20


def reliability(tokens: Floats, predicted: Floats, bins: int = BINS) -> tuple[Floats, Floats]:
    """Mean predicted and mean true length of equal-count bins of the prediction, shapes (bins,)."""
    parts = [part for part in np.array_split(np.argsort(predicted, kind="stable"), bins) if len(part)]
    return (
        np.array([predicted[part].mean() for part in parts]),
        np.array([tokens[part].mean() for part in parts]),
    )


def confusion(tokens: Floats, predicted: Floats, edges: Floats) -> NDArray[np.int64]:
    """Rows: true class, columns: class of the prediction; shape (classes, classes)."""
    classes = len(edges) + 1
    places = np.digitize(tokens, edges) * classes + np.digitize(predicted, edges)
    return np.bincount(places, minlength=classes * classes).reshape(classes, classes)


def draw(directory: Path, name: str, tokens: Floats, predicted: Floats, edges: Floats) -> list[Path]:
    """Write ``NAME_reliability.png`` and ``NAME_confusion.png`` to ``directory``.

    Raises InputError when matplotlib is missing or the directory cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise InputError('--plots needs matplotlib: pip install "muserve[demo]"') from error
    figure = Figure(figsize=(5, 4.2), layout="constrained")
    axes = figure.subplots()
    expected, observed = reliability(tokens, predicted)
    most = float(max(expected.max(), observed.max()))
    axes.plot([0.0, most], [0.0, most], color="grey", linewidth=1, label="as predicted")
    axes.plot(
        expected, observed, marker="o", label=f"{len(expected)} bins of {len(tokens) // BINS:,} prompts"
    )
    axes.set(xlabel="mean predicted tokens", ylabel="mean answer tokens", title=f"Reliability, {name}")
    axes.legend()
    grid = Figure(figsize=(5, 4.4), layout="constrained")
    cells = grid.subplots()
    counts = confusion(tokens, predicted, edges)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cells.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for (row, column), share in np.ndenumerate(shares):
        cells.text(column, row, f"{share:.2f}", ha="center", va="center", color="w" if share > 0.6 else "k")
    labels = [f"< {edge:.0f}" for edge in edges] + [f">= {edges[-1]:.0f}"]
    cells.set(xlabel="predicted tokens", ylabel="answer tokens", title=f"Confusion, {name} (share of row)")
    cells.set_xticks(range(len(labels)), labels)
    cells.set_yticks(range(len(labels)), labels)
    files = [directory / f"{name}_reliability.png", directory / f"{name}_confusion.png"]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for picture, file in zip((figure, grid), files, strict=True):
            picture.savefig(file, dpi=120)
    except OSError as error:
        raise InputError(f"{directory}: cannot be written: {error.strerror or error}") from error
    return files
