"""What a decoder's graph computes once a step, from positions alone: masks, ALiBi, rotary angles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from muplan.architecture.decoder import DecoderArchitecture, Rotary
from muplan.architecture.graph import GraphBuilder


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """Tensors that depend on positions only.

    ``tokens`` [tokens] are the positions of the step's tokens; ``bias`` is what attention adds to the scores;
    ``cosine`` and ``sine`` [tokens, pairs] are those of the rotary angles.
    """

    tokens: str
    bias: str | None
    cosine: str
    sine: str


def positions(graph: GraphBuilder, net: DecoderArchitecture, first: str, past: str | None) -> Positions:
    """Positions start at the length of the cache ``past``, at 0 without one."""
    scope = "positions"
    zero, one = graph.integers(0), graph.integers(1)
    if past is None:
        count = graph.add(scope, "Gather", graph.add(scope, "Shape", first), one, axis=0)
        tokens = graph.add(scope, "Range", zero, count, one)
    else:
        count = graph.add(scope, "Gather", graph.add(scope, "Shape", past), graph.integers(2), axis=0)
        tokens = graph.add(scope, "Unsqueeze", count, graph.integers([0]))
    cosine, sine = _rotations(graph, net.rotary, tokens) if net.rotary else ("", "")
    bias = None
    if past is None:
        later = graph.add(
            scope,
            "Greater",
            graph.add(scope, "Unsqueeze", tokens, graph.integers([0])),
            graph.add(scope, "Unsqueeze", tokens, graph.integers([1])),
        )
        bias = graph.add(scope, "Where", later, graph.numbers(-math.inf), graph.numbers(0.0))
    if net.alibi:
        keys = tokens
        if past is not None:
            keys = graph.add(scope, "Range", zero, graph.add(scope, "Add", count, one), one)
        slopes = graph.table(_slopes(graph, net.heads))
        distances = graph.add(scope, "Mul", graph.cast(scope, keys, full=False), slopes)
        bias = distances if bias is None else graph.add(scope, "Add", distances, bias)
    return Positions(tokens=tokens, bias=bias, cosine=cosine, sine=sine)


def _rotations(graph: GraphBuilder, rotary: Rotary, tokens: str) -> tuple[str, str]:
    """Cosine and sine [tokens, pairs] of the rotary angles, whose precision needs fp32."""
    scope = "positions"
    rows = graph.add(scope, "Unsqueeze", graph.cast(scope, tokens, full=True), graph.integers([1]))
    angles = graph.add(scope, "Mul", rows, graph.numbers(rotary.inverse_frequencies, full=True))
    cosine, sine = (graph.add(scope, op, angles) for op in ("Cos", "Sin"))
    if not graph.half:
        return cosine, sine
    return graph.cast(scope, cosine, full=False), graph.cast(scope, sine, full=False)


def _slopes(graph: GraphBuilder, heads: int) -> np.ndarray[Any, np.dtype[Any]]:
    """ALiBi slopes [heads, 1, 1] (Press et al. 2022, arXiv 2108.12409), for any number of heads."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    slopes += [2 ** (-4 * (2 * head + 1) / power) for head in range(heads - power)]
    return np.array(slopes, np.float16 if graph.half else np.float32).reshape(-1, 1, 1)
