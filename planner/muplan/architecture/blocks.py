"""The blocks that transformers are made of, as ONNX operators: norms, projections, activations, attention."""

from __future__ import annotations

import math
from typing import Literal

from muplan.architecture.decoder import Activation, Experts, Rotary
from muplan.architecture.graph import GraphBuilder


def norm(
    graph: GraphBuilder,
    module: str,
    tensor: str,
    size: int,
    kind: Literal["layer", "rms"],
    epsilon: float,
) -> str:
    """Layer norm with a shift, or root-mean-square norm without (Zhang and Sennrich 2019), in fp32 inside."""
    weight = graph.weight(f"{module}.weight", (size,))
    if kind == "layer":
        shift = graph.weight(f"{module}.bias", (size,))
        return graph.add(module, "LayerNormalization", tensor, weight, shift, axis=-1, epsilon=epsilon)
    full = graph.cast(module, tensor, full=True) if graph.half else tensor
    square = graph.add(module, "Mul", full, full)
    mean = graph.add(module, "ReduceMean", square, graph.integers([-1]), keepdims=1)
    root = graph.add(module, "Sqrt", graph.add(module, "Add", mean, graph.numbers(epsilon, full=True)))
    scaled = graph.add(module, "Div", full, root)
    return graph.add(module, "Mul", graph.cast(module, scaled, full=False) if graph.half else scaled, weight)


def linear(
    graph: GraphBuilder,
    module: str,
    tensor: str,
    inner: int,
    outer: int,
    *,
    bias: bool,
    transposed: bool = True,
) -> str:
    """``tensor`` [..., inner] times the module's weight, plus its bias: [..., outer]."""
    weight = graph.matrix(f"{module}.weight", inner, outer, transposed=transposed)
    product = graph.add(module, "MatMul", tensor, weight)
    if not bias:
        return product
    return graph.add(module, "Add", product, graph.weight(f"{module}.bias", (outer,)))


def activate(graph: GraphBuilder, scope: str, tensor: str, activation: Activation) -> str:
    """The activation function; both forms of GELU as in Hendrycks and Gimpel 2016, arXiv 1606.08415."""
    if activation == "relu":
        return graph.add(scope, "Relu", tensor)
    if activation == "silu":
        return graph.add(scope, "Mul", tensor, graph.add(scope, "Sigmoid", tensor))
    if activation == "gelu":
        inner = graph.add(scope, "Erf", graph.add(scope, "Mul", tensor, graph.numbers(math.sqrt(0.5))))
    else:
        cube = graph.add(scope, "Mul", graph.add(scope, "Mul", tensor, tensor), tensor)
        bent = graph.add(scope, "Add", tensor, graph.add(scope, "Mul", cube, graph.numbers(0.044715)))
        inner = graph.add(scope, "Tanh", graph.add(scope, "Mul", bent, graph.numbers(math.sqrt(2 / math.pi))))
    half = graph.add(scope, "Mul", tensor, graph.numbers(0.5))
    return graph.add(scope, "Mul", half, graph.add(scope, "Add", inner, graph.numbers(1.0)))


def split_heads(graph: GraphBuilder, scope: str, tensor: str, heads: int, size: int) -> str:
    """[batch, tokens, ...] with heads x size elements a token, as [batch, heads, tokens, size]."""
    parted = graph.reshape(scope, tensor, (0, 0, heads, size))
    return graph.add(scope, "Transpose", parted, perm=(0, 2, 1, 3))


def rotate(
    graph: GraphBuilder, scope: str, heads: str, rotary: Rotary, cosine: str, sine: str, head_size: int
) -> str:
    """Turn each pair of ``heads`` [batch, heads, tokens, size] by its angle [tokens, pairs]."""
    pairs = len(rotary.inverse_frequencies)
    rest = head_size - 2 * pairs
    kept = ""
    if rest:
        heads, kept = graph.add_many(scope, "Split", (heads, graph.integers([2 * pairs, rest])), 2, axis=-1)
    if rotary.interleaved:
        paired = graph.reshape(scope, heads, (0, 0, 0, pairs, 2))
        halves = graph.add_many(scope, "Split", (paired, graph.integers([1, 1])), 2, axis=-1)
        first, second = (graph.reshape(scope, half, (0, 0, 0, pairs)) for half in halves)
    else:
        first, second = graph.add_many(scope, "Split", (heads, graph.integers([pairs, pairs])), 2, axis=-1)
    turned = [
        graph.add(
            scope, "Sub", graph.add(scope, "Mul", first, cosine), graph.add(scope, "Mul", second, sine)
        ),
        graph.add(
            scope, "Add", graph.add(scope, "Mul", second, cosine), graph.add(scope, "Mul", first, sine)
        ),
    ]
    if rotary.interleaved:
        columns = [graph.add(scope, "Unsqueeze", half, graph.integers([-1])) for half in turned]
        joined = graph.add(scope, "Concat", *columns, axis=-1)
        turned = [graph.reshape(scope, joined, (0, 0, 0, 2 * pairs))]
    pieces = [*turned, kept] if kept else turned
    return pieces[0] if len(pieces) == 1 else graph.add(scope, "Concat", *pieces, axis=-1)


def attend(
    graph: GraphBuilder,
    scope: str,
    query: str,
    key: str,
    value: str,
    *,
    heads: int,
    kv_heads: int,
    head_size: int,
    scale: float,
    bias: str | None,
) -> str:
    """Softmax attention: [batch, heads, tokens, size] over [batch, kv_heads, context, size].

    ``bias`` [tokens, context] or [heads, tokens, context] is added to the scores. Gives
    [batch, tokens, heads x size]. Grouped queries share their keys without repeating them.
    """
    group = heads // kv_heads
    if group > 1:
        query = graph.reshape(scope, query, (0, kv_heads, group, -1, head_size))
        key, value = (graph.add(scope, "Unsqueeze", t, graph.integers([2])) for t in (key, value))
    turned = graph.add(scope, "Transpose", key, perm=(0, 1, 2, 4, 3) if group > 1 else (0, 1, 3, 2))
    scores = graph.add(scope, "MatMul", query, turned)
    if scale != 1:
        scores = graph.add(scope, "Mul", scores, graph.numbers(scale))
    if bias is not None:
        scores = graph.add(scope, "Add", scores, bias)
    mixed = graph.add(scope, "MatMul", graph.add(scope, "Softmax", scores, axis=-1), value)
    order = (0, 3, 1, 2, 4) if group > 1 else (0, 2, 1, 3)
    return graph.reshape(scope, graph.add(scope, "Transpose", mixed, perm=order), (0, 0, heads * head_size))


def mixture(
    graph: GraphBuilder,
    scope: str,
    tensor: str,
    hidden_size: int,
    experts: Experts,
    *,
    router: str,
    gate: str | None,
    up: str,
    down: str,
    activation: Activation,
) -> str:
    """Each token of ``tensor`` [batch, tokens, hidden] through its ``chosen`` experts, as a weighted sum.

    ``gate``, ``up`` and ``down`` are parameter names with ``*`` for the expert's index.
    """
    choice = graph.add(
        router,
        "MatMul",
        tensor,
        graph.matrix(f"{router}.weight", hidden_size, experts.count, transposed=True),
    )
    full = graph.cast(router, choice, full=True) if graph.half else choice
    likely, which = graph.add_many(
        router,
        "TopK",
        (graph.add(router, "Softmax", full, axis=-1), graph.integers([experts.chosen])),
        2,
        axis=-1,
    )
    if experts.normalised:
        total = graph.add(router, "ReduceSum", likely, graph.integers([-1]), keepdims=1)
        likely = graph.add(router, "Div", likely, total)
    share = graph.cast(router, likely, full=False) if graph.half else likely

    def product(rows: str, name: str, inner: int, outer: int) -> str:
        matrices = graph.weight(f"{name}.transposed", (experts.count, inner, outer))
        picked = graph.add(scope, "Gather", matrices, which, axis=0)
        return graph.add(scope, "MatMul", rows, picked)

    rows = graph.add(scope, "Unsqueeze", tensor, graph.integers([2, 3]))
    raised = product(rows, up, hidden_size, experts.size)
    if gate is None:
        raised = activate(graph, scope, raised, activation)
    else:
        opened = activate(graph, scope, product(rows, gate, hidden_size, experts.size), activation)
        raised = graph.add(scope, "Mul", opened, raised)
    answers = product(raised, down, experts.size, hidden_size)
    weighted = graph.add(scope, "Mul", answers, graph.add(scope, "Unsqueeze", share, graph.integers([3, 4])))
    return graph.add(scope, "ReduceSum", weighted, graph.integers([2, 3]), keepdims=0)
