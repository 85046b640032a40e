"""T5-like encoder-decoders with a mixture of experts (Switch Transformer), and their two graphs.

    prefill   input_ids [batch, prompt]
              encoder, keys and values of the decoder's cross-attention, and the decoder's first step
    decode    input_ids [batch, 1], past_key.N and past_value.N [batch, heads, context, head_size], and
              cross_key.N and cross_value.N [batch, heads, prompt, head_size] of every decoder layer N

Both give logits [batch, vocabulary], present_key.N and present_value.N; prefill gives cross_key.N and
cross_value.N as well. Prompts of one batch are equally long. Experts take every token that chooses them: the
original drops tokens beyond ``expert_capacity`` of one prompt (Fedus et al. 2022, arXiv 2101.03961).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from muplan.architecture.blocks import activate, attend, linear, mixture, norm, split_heads
from muplan.architecture.decoder import Activation, Experts
from muplan.architecture.graph import Dtype, GraphBuilder, Step

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderDecoderArchitecture:
    """``layers`` and ``experts.layers`` are the decoder's, ``encoder_experts`` the encoder's mixtures.

    ``buckets`` and ``farthest`` shape the relative position bias; ``tied_head`` also scales the head's input
    by 1 / sqrt(hidden).
    """

    model_type: str
    layers: int
    encoder_layers: int
    hidden_size: int
    heads: int
    head_size: int
    feed_forward_size: int
    vocabulary: int
    max_tokens: int
    norm_epsilon: float
    activation: Activation
    buckets: int
    farthest: int
    start_token: int
    tied_head: bool
    experts: Experts
    encoder_experts: tuple[bool, ...]

    @property
    def kv_heads(self) -> int:
        """Heads of the caches."""
        return self.heads

    @property
    def kv_width(self) -> int:
        """Elements of one token's keys (or values) in one layer, for answer and prompt tokens alike."""
        return self.heads * self.head_size


def encoder_decoder_graph(
    net: EncoderDecoderArchitecture, step: Step, *, dtype: Dtype = "fp16"
) -> onnx.ModelProto:
    """The weightless graph of ``step``."""
    from onnx import TensorProto

    graph = GraphBuilder(dtype)
    prefill = step == "prefill"
    ids = graph.input("input_ids", ("batch", "prompt" if prefill else 1), TensorProto.INT64)
    if prefill:
        caches = dict[int, tuple[str, str]]()
        crosses = _cross_caches(graph, net, _encoded(graph, net, ids))
        first = graph.add("decoder", "Gather", ids, graph.integers([0]), axis=1)
        nothing = graph.add("decoder", "Mul", first, graph.integers(0))
        ids = graph.add("decoder", "Add", nothing, graph.integers(net.start_token))
    else:
        caches = _cache_inputs(graph, net, "past", "context")
        crosses = _cache_inputs(graph, net, "cross", "prompt")
    hidden, presents = _decoded(graph, net, ids, caches, crosses)
    graph.output("logits", _logits(graph, net, hidden), ("batch", net.vocabulary))
    _cache_outputs(graph, net, "present", presents, 1 if prefill else "context_and_token")
    if prefill:
        _cache_outputs(graph, net, "cross", crosses, "prompt")
    return graph.model(f"{net.model_type}_{step}")


_Caches = dict[int, tuple[str, str]]


def _cache_inputs(graph: GraphBuilder, net: EncoderDecoderArchitecture, kind: str, axis: str) -> _Caches:
    dims = ("batch", net.heads, axis, net.head_size)
    return {
        layer: (graph.input(f"{kind}_key.{layer}", dims), graph.input(f"{kind}_value.{layer}", dims))
        for layer in range(net.layers)
    }


def _cache_outputs(
    graph: GraphBuilder, net: EncoderDecoderArchitecture, kind: str, caches: _Caches, axis: int | str
) -> None:
    for layer, pair in caches.items():
        for part, tensor in zip(("key", "value"), pair, strict=True):
            graph.output(f"{kind}_{part}.{layer}", tensor, ("batch", net.heads, axis, net.head_size))


def _encoded(graph: GraphBuilder, net: EncoderDecoderArchitecture, ids: str) -> str:
    """The encoder's output [batch, prompt, hidden]."""
    hidden = graph.add("encoder", "Gather", graph.embedding("shared", net.vocabulary, net.hidden_size), ids)
    count = graph.add("encoder", "Gather", graph.add("encoder", "Shape", ids), graph.integers(1))
    places = graph.add("encoder", "Range", graph.integers(0), count, graph.integers(1))
    bias = _relative_bias(graph, net, "encoder", places, places)
    for layer in range(net.encoder_layers):
        block = f"encoder.block.{layer}.layer"
        normed = _norm(graph, net, f"{block}.0.layer_norm", hidden)
        query, key, value = (_heads(graph, net, f"{block}.0.SelfAttention", r, normed) for r in "qkv")
        hidden = _attended(graph, net, f"{block}.0.SelfAttention", hidden, query, key, value, bias)
        hidden = _feed_forward(graph, net, f"{block}.1", hidden, net.encoder_experts[layer])
    return _norm(graph, net, "encoder.final_layer_norm", hidden)


def _cross_caches(graph: GraphBuilder, net: EncoderDecoderArchitecture, encoded: str) -> _Caches:
    caches = {}
    for layer in range(net.layers):
        module = f"decoder.block.{layer}.layer.1.EncDecAttention"
        caches[layer] = (
            _heads(graph, net, module, "k", encoded),
            _heads(graph, net, module, "v", encoded),
        )
    return caches


def _decoded(
    graph: GraphBuilder, net: EncoderDecoderArchitecture, ids: str, caches: _Caches, crosses: _Caches
) -> tuple[str, _Caches]:
    """The decoder's output [batch, 1, hidden] for one token each, and its keys and values so far."""
    zero, one = graph.integers(0), graph.integers(1)
    hidden = graph.add("decoder", "Gather", graph.embedding("shared", net.vocabulary, net.hidden_size), ids)
    place = zero
    if caches:
        place = graph.add("decoder", "Gather", graph.add("decoder", "Shape", caches[0][0]), graph.integers(2))
    keys = graph.add("decoder", "Range", zero, graph.add("decoder", "Add", place, one), one)
    query_place = graph.add("decoder", "Unsqueeze", place, graph.integers([0]))
    bias = _relative_bias(graph, net, "decoder", query_place, keys)
    presents = {}
    for layer in range(net.layers):
        block = f"decoder.block.{layer}.layer"
        module = f"{block}.0.SelfAttention"
        normed = _norm(graph, net, f"{block}.0.layer_norm", hidden)
        query, key, value = (_heads(graph, net, module, role, normed) for role in "qkv")
        if caches:
            key = graph.add(module, "Concat", caches[layer][0], key, axis=2)
            value = graph.add(module, "Concat", caches[layer][1], value, axis=2)
        presents[layer] = (key, value)
        hidden = _attended(graph, net, module, hidden, query, key, value, bias)
        module = f"{block}.1.EncDecAttention"
        normed = _norm(graph, net, f"{block}.1.layer_norm", hidden)
        query = _heads(graph, net, module, "q", normed)
        hidden = _attended(graph, net, module, hidden, query, *crosses[layer], None)
        hidden = _feed_forward(graph, net, f"{block}.2", hidden, net.experts.layers[layer])
    return _norm(graph, net, "decoder.final_layer_norm", hidden), presents


def _relative_bias(
    graph: GraphBuilder, net: EncoderDecoderArchitecture, side: str, queries: str, keys: str
) -> str:
    """A learned bias [heads, queries, keys] for each bucket of distances (Raffel et al. 2020, 2.1)."""
    module = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias"
    rows = graph.add(module, "Unsqueeze", queries, graph.integers([1]))
    distances = graph.add(module, "Sub", graph.add(module, "Unsqueeze", keys, graph.integers([0])), rows)
    near = graph.add(module, "Clip", distances, graph.integers(-net.farthest), graph.integers(net.farthest))
    places = graph.add(module, "Add", near, graph.integers(net.farthest))
    bucket = graph.add(module, "Gather", graph.table(_buckets(net, both_ways=side == "encoder")), places)
    values = graph.add(module, "Gather", graph.embedding(module, net.buckets, net.heads), bucket)
    return graph.add(module, "Transpose", values, perm=(2, 0, 1))


def _buckets(net: EncoderDecoderArchitecture, *, both_ways: bool) -> np.ndarray[Any, np.dtype[Any]]:
    """The bucket of every distance from ``-farthest`` to ``farthest``: exact near by, then logarithmic."""
    distances = np.arange(-net.farthest, net.farthest + 1)
    count = net.buckets // 2 if both_ways else net.buckets
    later = (distances > 0) * count if both_ways else 0
    size = np.abs(distances) if both_ways else np.maximum(-distances, 0)
    exact = count // 2
    share = np.log(np.maximum(size, 1).astype(np.float32) / exact) / math.log(net.farthest / exact)
    coarse = np.minimum(exact + (share * (count - exact)).astype(np.int64), count - 1)
    return np.asarray(later + np.where(size < exact, size, coarse), np.int64)


def _heads(graph: GraphBuilder, net: EncoderDecoderArchitecture, module: str, role: str, tensor: str) -> str:
    rows = linear(graph, f"{module}.{role}", tensor, net.hidden_size, net.kv_width, bias=False)
    return split_heads(graph, module, rows, net.heads, net.head_size)


def _attended(
    graph: GraphBuilder,
    net: EncoderDecoderArchitecture,
    module: str,
    hidden: str,
    query: str,
    key: str,
    value: str,
    bias: str | None,
) -> str:
    """``hidden`` plus what attention makes of ``query``; T5 does not scale its scores."""
    mixed = attend(
        graph,
        module,
        query,
        key,
        value,
        heads=net.heads,
        kv_heads=net.heads,
        head_size=net.head_size,
        scale=1.0,
        bias=bias,
    )
    change = linear(graph, f"{module}.o", mixed, net.kv_width, net.hidden_size, bias=False)
    return graph.add(module, "Add", hidden, change)


def _feed_forward(
    graph: GraphBuilder, net: EncoderDecoderArchitecture, module: str, hidden: str, sparse: bool
) -> str:
    normed = _norm(graph, net, f"{module}.layer_norm", hidden)
    scope = f"{module}.mlp"
    if sparse:
        change = mixture(
            graph,
            scope,
            normed,
            net.hidden_size,
            net.experts,
            router=f"{scope}.router.classifier",
            gate=None,
            up=f"{scope}.experts.expert_*.wi.weight",
            down=f"{scope}.experts.expert_*.wo.weight",
            activation=net.activation,
        )
    else:
        size = net.feed_forward_size
        raised = linear(graph, f"{scope}.wi", normed, net.hidden_size, size, bias=False)
        opened = activate(graph, scope, raised, net.activation)
        change = linear(graph, f"{scope}.wo", opened, size, net.hidden_size, bias=False)
    return graph.add(scope, "Add", hidden, change)


def _norm(graph: GraphBuilder, net: EncoderDecoderArchitecture, module: str, tensor: str) -> str:
    return norm(graph, module, tensor, net.hidden_size, "rms", net.norm_epsilon)


def _logits(graph: GraphBuilder, net: EncoderDecoderArchitecture, hidden: str) -> str:
    last = graph.add("lm_head", "Squeeze", hidden, graph.integers([1]))
    if not net.tied_head:
        return linear(graph, "lm_head", last, net.hidden_size, net.vocabulary, bias=False)
    scaled = graph.add("lm_head", "Mul", last, graph.numbers(net.hidden_size**-0.5))
    table = graph.embedding("shared", net.vocabulary, net.hidden_size)
    return graph.add("lm_head", "MatMul", scaled, graph.add("lm_head", "Transpose", table, perm=(1, 0)))
