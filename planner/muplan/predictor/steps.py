"""From what the trees put out to an expected length: small steps, each in NumPy and as ONNX nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from muserve.isotonic import RisingCurve

Floats = NDArray[np.float64]


@dataclass(slots=True)
class GraphParts:
    """Nodes and constants of an ONNX graph while they are collected; names are made unique."""

    nodes: list[Any] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)

    def constant(self, value: NDArray[Any]) -> str:
        """Add a constant and give its name."""
        name = f"constant_{len(self.constants)}"
        self.constants[name] = value
        return name

    def add(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node of one output and give that output's name."""
        from onnx import helper

        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name


class Step(Protocol):
    """Maps (n, k) to (n, m)."""

    def apply(self, values: Floats) -> Floats: ...
    def emit(self, parts: GraphParts, source: str) -> str: ...


@dataclass(frozen=True, slots=True)
class Softmax:
    """Log-odds of classes to their probabilities."""

    def apply(self, values: Floats) -> Floats:
        """Rows that sum to 1."""
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float64)

    def emit(self, parts: GraphParts, source: str) -> str:
        """One node."""
        return parts.add("Softmax", [source], axis=-1)


@dataclass(frozen=True, slots=True)
class Sigmoid:
    """Log-odds to a probability, column by column."""

    def apply(self, values: Floats) -> Floats:
        """Values between 0 and 1."""
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * values)), np.float64)

    def emit(self, parts: GraphParts, source: str) -> str:
        """One node."""
        return parts.add("Sigmoid", [source])


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """``values @ weights + constant``: expected length from class probabilities, for one."""

    weights: Floats
    constant: float = 0.0

    def apply(self, values: Floats) -> Floats:
        """Shape (n, 1)."""
        return np.asarray(values @ self.weights[:, np.newaxis] + self.constant, np.float64)

    def emit(self, parts: GraphParts, source: str) -> str:
        """Two nodes."""
        weights = parts.constant(self.weights.astype(np.float32)[:, np.newaxis])
        total = parts.add("MatMul", [source, weights])
        return parts.add("Add", [total, parts.constant(np.array(self.constant, np.float32))])


@dataclass(frozen=True, slots=True)
class Calibration:
    """A score that is no length to the length that goes with it."""

    curve: RisingCurve

    def apply(self, values: Floats) -> Floats:
        """The curve, element by element."""
        return self.curve(values)

    def emit(self, parts: GraphParts, source: str) -> str:
        """Sum of slope times how far the score gets into each segment; the outer ones are open."""
        starts, widths = self.curve.x[:-1].astype(np.float32), np.diff(self.curve.x).astype(np.float32)
        least, most = np.zeros_like(starts), widths.copy()
        least[0], most[-1] = -np.inf, np.inf
        into = parts.add("Sub", [source, parts.constant(starts)])
        into = parts.add("Min", [parts.add("Max", [into, parts.constant(least)]), parts.constant(most)])
        return WeightedSum(self.curve.slopes, float(self.curve.y[0])).emit(parts, into)


def apply_steps(steps: Sequence[Step], values: Floats) -> Floats:
    """``steps`` one after the other."""
    for step in steps:
        values = step.apply(values)
    return values
