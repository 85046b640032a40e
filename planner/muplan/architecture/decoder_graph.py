"""The two graphs of a decoder-only transformer: prefill of whole prompts, and one decode step.

    prefill   input_ids [batch, tokens]
    decode    input_ids [batch, 1], and past_key.N and past_value.N [batch, kv_heads, context, head_size]
              of every layer N

Both give the logits [batch, vocabulary] of the last token, and present_key.N and present_value.N.
Prompts of one batch are equally long. A graph may cover a contiguous range of layers: all but the first take
``hidden_states.N`` [batch, tokens, hidden], the input of layer N, and all but the last give it; each keeps
the keys and values of its own layers. Only operators of the standard ONNX set, version 18, are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from muplan.architecture.blocks import activate, attend, linear, mixture, norm, rotate, split_heads
from muplan.architecture.decoder import DecoderArchitecture
from muplan.architecture.graph import Dtype, GraphBuilder, Step
from muplan.architecture.positions import Positions, positions

if TYPE_CHECKING:
    import onnx


def decoder_graph(
    net: DecoderArchitecture, step: Step, *, layers: range | None = None, dtype: Dtype = "fp16"
) -> onnx.ModelProto:
    """The weightless graph of ``step`` for ``layers``, by default all of them."""
    layers = layers or range(net.layers)
    assert 0 <= layers.start < layers.stop <= net.layers, "layers of the network"
    graph = GraphBuilder(dtype)
    tokens: int | str = "tokens" if step == "prefill" else 1
    hidden = _entry(graph, net, layers, tokens)
    caches = _caches(graph, net, layers) if step == "decode" else {}
    where = positions(graph, net, hidden, caches[layers.start][0] if caches else None)
    if layers.start == 0:
        hidden = _embedded(graph, net, hidden, where)
    presents = {}
    for layer in layers:
        hidden, presents[layer] = _layer(graph, net, layer, hidden, where, caches.get(layer))
    _exit(graph, net, layers, hidden, tokens)
    for layer, (key, value) in presents.items():
        dims = ("batch", net.kv_heads, "tokens" if step == "prefill" else "context_and_token", net.head_size)
        graph.output(f"present_key.{layer}", key, dims)
        graph.output(f"present_value.{layer}", value, dims)
    return graph.model(f"{net.model_type}_{step}")


_Caches = dict[int, tuple[str, str]]


def _entry(graph: GraphBuilder, net: DecoderArchitecture, layers: range, tokens: int | str) -> str:
    from onnx import TensorProto

    if layers.start == 0:
        return graph.input("input_ids", ("batch", tokens), TensorProto.INT64)
    return graph.input(f"hidden_states.{layers.start}", ("batch", tokens, net.hidden_size))


def _caches(graph: GraphBuilder, net: DecoderArchitecture, layers: range) -> _Caches:
    dims = ("batch", net.kv_heads, "context", net.head_size)
    return {
        layer: (graph.input(f"past_key.{layer}", dims), graph.input(f"past_value.{layer}", dims))
        for layer in layers
    }


def _embedded(graph: GraphBuilder, net: DecoderArchitecture, ids: str, where: Positions) -> str:
    module = net.names["embedding"]
    table = graph.embedding(module, net.vocabulary, net.hidden_size)
    hidden = graph.add(module, "Gather", table, ids, axis=0)
    if net.position_rows:
        module = net.names["positions"]
        rows = where.tokens
        if net.position_offset:
            rows = graph.add(module, "Add", rows, graph.integers(net.position_offset))
        table = graph.embedding(module, net.position_rows, net.hidden_size)
        hidden = graph.add(module, "Add", hidden, graph.add(module, "Gather", table, rows, axis=0))
    if net.embedding_norm:
        hidden = _norm(graph, net, "embedding_norm", 0, hidden)
    return hidden


def _layer(
    graph: GraphBuilder,
    net: DecoderArchitecture,
    layer: int,
    hidden: str,
    where: Positions,
    past: tuple[str, str] | None,
) -> tuple[str, tuple[str, str]]:
    """The layer's output, and its keys and values so far."""
    normed = _norm(graph, net, "attention_norm", layer, hidden)
    scope = net.names["attention"].format(layer=layer)
    query, key, value = _projections(graph, net, layer, normed, where)
    if past is not None:
        key = graph.add(scope, "Concat", past[0], key, axis=2)
        value = graph.add(scope, "Concat", past[1], value, axis=2)
    mixed = attend(
        graph,
        scope,
        query,
        key,
        value,
        heads=net.heads,
        kv_heads=net.kv_heads,
        head_size=net.head_size,
        scale=net.head_size**-0.5,
        bias=where.bias,
    )
    attended = _linear(graph, net, "output", layer, mixed, net.width, net.hidden_size, bias=net.output_bias)
    if net.parallel_residual:
        change = graph.add(scope, "Add", attended, _feed_forward(graph, net, layer, normed))
        return graph.add(scope, "Add", hidden, change), (key, value)
    hidden = graph.add(scope, "Add", hidden, attended)
    normed = _norm(graph, net, "feed_forward_norm", layer, hidden)
    change = _feed_forward(graph, net, layer, normed)
    scope = net.names["feed_forward"].format(layer=layer)
    return graph.add(scope, "Add", hidden, change), (key, value)


def _projections(
    graph: GraphBuilder, net: DecoderArchitecture, layer: int, tensor: str, where: Positions
) -> tuple[str, str, str]:
    """Queries, keys and values [batch, heads, tokens, size], normed and rotated where the network says so."""
    scope = net.names["attention"].format(layer=layer)
    fused = _fused_projection(graph, net, layer, tensor) if net.fused is not None else None
    made = []
    for role, count in (("query", net.heads), ("key", net.kv_heads), ("value", net.kv_heads)):
        rows = (
            fused[role]
            if fused
            else _linear(
                graph,
                net,
                role,
                layer,
                tensor,
                net.hidden_size,
                count * net.head_size,
                bias=net.projection_biases,
            )
        )
        heads = split_heads(graph, scope, rows, count, net.head_size)
        if net.head_norms and role != "value":
            module = net.names[f"{role}_norm"].format(layer=layer)
            heads = norm(graph, module, heads, net.head_size, net.norm, net.norm_epsilon)
        if net.rotary is not None and role != "value":
            heads = rotate(graph, scope, heads, net.rotary, where.cosine, where.sine, net.head_size)
        made.append(heads)
    query, key, value = made
    return query, key, value


def _fused_projection(
    graph: GraphBuilder, net: DecoderArchitecture, layer: int, tensor: str
) -> dict[str, str]:
    """Queries, keys and values from one matrix, by role."""
    assert net.fused is not None, "the network has such a matrix"
    scope, share = net.names["attention"].format(layer=layer), net.width // net.fused.groups
    rows = _linear(
        graph,
        net,
        "projection",
        layer,
        tensor,
        net.hidden_size,
        3 * net.width,
        bias=net.projection_biases,
    )
    blocks = graph.reshape(scope, rows, (0, 0, net.fused.groups, 3 * share))
    parts = graph.add_many(scope, "Split", (blocks, graph.integers([share] * 3)), 3, axis=-1)
    return dict(zip(net.fused.order, parts, strict=True))


def _feed_forward(graph: GraphBuilder, net: DecoderArchitecture, layer: int, tensor: str) -> str:
    scope = net.names["feed_forward"].format(layer=layer)
    if net.experts is not None and net.has_experts(layer):
        expert = {role: net.names[f"expert_{role}"].format(layer=layer) for role in ("gate", "up", "down")}
        return mixture(
            graph,
            scope,
            tensor,
            net.hidden_size,
            net.experts,
            router=net.names["router"].format(layer=layer),
            gate=expert["gate"],
            up=expert["up"],
            down=expert["down"],
            activation=net.activation,
        )
    size, bias = net.feed_forward_size, net.feed_forward_biases
    raised = _linear(graph, net, "up", layer, tensor, net.hidden_size, size, bias=bias)
    if net.gated:
        opened = _linear(graph, net, "gate", layer, tensor, net.hidden_size, size, bias=bias)
        raised = graph.add(scope, "Mul", activate(graph, scope, opened, net.activation), raised)
    else:
        raised = activate(graph, scope, raised, net.activation)
    return _linear(graph, net, "down", layer, raised, size, net.hidden_size, bias=bias)


def _exit(
    graph: GraphBuilder, net: DecoderArchitecture, layers: range, hidden: str, tokens: int | str
) -> None:
    if layers.stop < net.layers:
        graph.output(f"hidden_states.{layers.stop}", hidden, ("batch", tokens, net.hidden_size))
        return
    module = net.names["head"]
    last = graph.add(module, "Gather", hidden, graph.integers(-1), axis=1)
    last = _norm(graph, net, "final_norm", 0, last)
    if net.tied_head:
        table = graph.embedding(net.names["embedding"], net.vocabulary, net.hidden_size)
        weight = graph.add(module, "Transpose", table, perm=(1, 0))
    else:
        weight = graph.matrix(f"{module}.weight", net.hidden_size, net.vocabulary, transposed=True)
    logits = graph.add(module, "MatMul", last, weight)
    if net.head_bias:
        logits = graph.add(module, "Add", logits, graph.weight(f"{module}.bias", (net.vocabulary,)))
    graph.output("logits", logits, ("batch", net.vocabulary))


def _norm(graph: GraphBuilder, net: DecoderArchitecture, role: str, layer: int, tensor: str) -> str:
    module = net.names[role].format(layer=layer)
    return norm(graph, module, tensor, net.hidden_size, net.norm, net.norm_epsilon)


def _linear(
    graph: GraphBuilder,
    net: DecoderArchitecture,
    role: str,
    layer: int,
    tensor: str,
    inner: int,
    outer: int,
    *,
    bias: bool,
) -> str:
    module = net.names[role].format(layer=layer)
    return linear(graph, module, tensor, inner, outer, bias=bias, transposed=net.linear_transposed)
