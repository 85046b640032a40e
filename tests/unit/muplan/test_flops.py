"""Operations of each kind of operator, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper, parser

from muplan.profile.operators import OperatorCost, operator_costs


def costs(text: str, opset: int = 18, **weights: tuple[int, ...]) -> tuple[OperatorCost, ...]:
    """Costs of the graph in ``text`` with initialisers of the given shapes, at batch 2."""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> agraph {text}')
    for name, shape in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    return operator_costs(model, 2, {})


@pytest.mark.parametrize(
    ("text", "weights", "expected"),
    [
        (  # 8 output channels on 16 x 16, each of 3 x 3 x 4
            "(float[batch, 4, 16, 16] x) => (float[batch, 8, 16, 16] y) "
            "{ y = Conv <pads = [1, 1, 1, 1]> (x, w) }",
            {"w": (8, 4, 3, 3)},
            2 * 2 * (8 * 16 * 16) * (4 * 9),
        ),
        (  # in two groups each output sees half of the channels
            "(float[batch, 4, 16, 16] x) => (float[batch, 8, 16, 16] y) "
            "{ y = Conv <pads = [1, 1, 1, 1], group = 2> (x, w) }",
            {"w": (8, 2, 3, 3)},
            2 * 2 * (8 * 16 * 16) * (2 * 9),
        ),
        (  # depthwise
            "(float[batch, 4, 16, 16] x) => (float[batch, 4, 16, 16] y) "
            "{ y = Conv <pads = [1, 1, 1, 1], group = 4> (x, w) }",
            {"w": (4, 1, 3, 3)},
            2 * 2 * (4 * 16 * 16) * 9,
        ),
        (  # dilation 2 spans 5 x 5 but multiplies 3 x 3; 12 x 12 outputs without padding
            "(float[batch, 4, 16, 16] x) => (float[batch, 8, 12, 12] y) "
            "{ y = Conv <dilations = [2, 2]> (x, w) }",
            {"w": (8, 4, 3, 3)},
            2 * 2 * (8 * 12 * 12) * (4 * 9),
        ),
        (  # stride 2 in one dimension
            "(float[batch, 4, 16] x) => (float[batch, 8, 8] y) { y = Conv <strides = [2]> (x, w) }",
            {"w": (8, 4, 2)},
            2 * 2 * (8 * 8) * (4 * 2),
        ),
        (  # transposed: every input element is spread over 8 channels of 2 x 2
            "(float[batch, 4, 16, 16] x) => (float[batch, 8, 32, 32] y) "
            "{ y = ConvTranspose <strides = [2, 2]> (x, w) }",
            {"w": (4, 8, 2, 2)},
            2 * (2 * 4 * 16 * 16) * (8 * 4),
        ),
        (  # transposed in two groups
            "(float[batch, 4, 16, 16] x) => (float[batch, 8, 32, 32] y) "
            "{ y = ConvTranspose <strides = [2, 2], group = 2> (x, w) }",
            {"w": (4, 4, 2, 2)},
            2 * (2 * 4 * 16 * 16) * (4 * 4),
        ),
        ("(float[batch, 5] x) => (float[batch, 7] y) { y = Gemm(x, w) }", {"w": (5, 7)}, 2 * 2 * 5 * 7),
        (
            "(float[5, batch] x) => (float[batch, 7] y) { y = Gemm <transA = 1, transB = 1> (x, w, b) }",
            {"w": (7, 5), "b": (7,)},
            2 * 2 * 5 * 7,
        ),
        ("(float[batch, 3, 5] x) => (float[batch, 3, 7] y) { y = MatMul(x, w) }", {"w": (5, 7)}, 2 * 6 * 35),
        (  # both operands broadcast: 2 x 4 products of (3, 5) with (5, 7)
            "(float[batch, 1, 3, 5] x) => (float[batch, 4, 3, 7] y) { y = MatMul(x, w) }",
            {"w": (4, 5, 7)},
            2 * (2 * 4) * 3 * 5 * 7,
        ),
        ("(float[batch, 5] x) => (float[batch] y) { y = MatMul(x, w) }", {"w": (5,)}, 2 * 2 * 5),
        (
            "(float[batch, 3, 5] x) => (float[batch, 3, 7] y) "
            '{ y = Einsum <equation = "bij, jk -> bik"> (x, w) }',
            {"w": (5, 7)},
            2 * 2 * 3 * 5 * 7,
        ),
        (  # attention scores: 2 batches, 4 heads, 3 x 6 pairs of size 5
            "(float[batch, 4, 3, 5] x) => (float[batch, 4, 3, 6] y) "
            '{ y = Einsum <equation = "...id,...jd->...ij"> (x, w) }',
            {"w": (1, 4, 6, 5)},
            2 * (2 * 4) * 3 * 6 * 5,
        ),
        (  # implicit output, and left to right: (2x3 by 3x5) then (2x5 by 5x7)
            '(float[batch, 3] x) => (float[batch, 7] y) { y = Einsum <equation = "ij,jk,kl"> (x, w, v) }',
            {"w": (3, 5), "v": (5, 7)},
            2 * (2 * 3 * 5) + 2 * (2 * 5 * 7),
        ),
        ('(float[batch, 3] x) => (float[batch] y) { y = Einsum <equation = "ij->i"> (x) }', {}, 2 * 3),
        (  # 7 steps, 4 gates of size 6 from 3 inputs and 6 hidden, in both directions
            "(float[7, batch, 3] x) => (float[7, 2, batch, 6] y) "
            '{ y = LSTM <hidden_size = 6, direction = "bidirectional"> (x, w, r) }',
            {"w": (2, 24, 3), "r": (2, 24, 6)},
            2 * 7 * 2 * (2 * 24 * 3 + 2 * 24 * 6),
        ),
        (
            "(float[7, batch, 3] x) => (float[7, 1, batch, 6] y) { y = GRU <hidden_size = 6> (x, w, r) }",
            {"w": (1, 18, 3), "r": (1, 18, 6)},
            2 * 7 * 2 * (18 * 3 + 18 * 6),
        ),
    ],
)
def test_products_are_counted_exactly(text: str, weights: dict[str, tuple[int, ...]], expected: int) -> None:
    (cost,) = costs(text, **weights)
    assert cost.matrix
    assert cost.flops == expected
    assert cost.launches
    assert cost.weight_bytes == 4 * sum(int(np.prod(shape)) for shape in weights.values())


@pytest.mark.parametrize(
    ("text", "per_element"),
    [
        ("(float[batch, 8] x) => (float[batch, 8] y) { y = LayerNormalization(x, s) }", 8),
        ("(float[batch, 8] x) => (float[batch, 8] y) { y = Softmax(x) }", 5),
        ("(float[batch, 8] x) => (float[batch, 8] y) { y = Relu(x) }", 1),
        ("(float[batch, 8, 4] x) => (float[batch, 8, 4] y) { y = InstanceNormalization(x, s, s) }", 8),
        ("(float[batch, 8, 4] x) => (float[batch, 8, 4] y) { y = BatchNormalization(x, s, s, s, s) }", 2),
    ],
)
def test_elementwise_operators_count_a_few_operations_per_element(text: str, per_element: int) -> None:
    (cost,) = costs(text, s=(8,))
    elements = cost.bytes_written // 4
    assert cost.flops == per_element * elements
    assert not cost.matrix


def test_group_normalisation_of_either_opset() -> None:
    text = """(float[batch, 8, 4] x) => (float[batch, 8, 4] y)
        { y = GroupNormalization <num_groups = 2> (x, s, s) }"""
    for opset, width in ((18, 2), (21, 8)):
        (cost,) = costs(text, opset, s=(width,))
        assert cost.flops == 8 * 2 * 8 * 4


def test_reductions_and_pools_read_everything() -> None:
    (mean,) = costs(
        "(float[batch, 6, 8] x) => (float[batch, 8] y) { y = ReduceMean <axes = [1], keepdims = 0> (x) }", 13
    )
    assert mean.flops == 2 * 6 * 8
    (pool,) = costs(
        "(float[batch, 3, 8, 8] x) => (float[batch, 3, 4, 4] y) "
        "{ y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x) }"
    )
    assert pool.flops == 2 * 3 * 8 * 8


@pytest.mark.parametrize(("mode", "taps"), [("nearest", 0), ("linear", 4), ("cubic", 16)])
def test_resizing_multiplies_every_tap(mode: str, taps: int) -> None:
    model = parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 18]>
        agraph (float[batch, 3, 8, 8] x) => (float[batch, 3, 16, 16] y)
        <float[4] scales = {{1.0, 1.0, 2.0, 2.0}}> {{ y = Resize <mode = "{mode}"> (x, , scales) }}
    """)
    (cost,) = operator_costs(model, 2, {})
    assert cost.flops == 2 * taps * (2 * 3 * 16 * 16)


def test_quantised_products() -> None:
    product, _ = costs(
        "(uint8[batch, 5] x, uint8[5, 7] w) => (float[batch, 7] y) "
        "{ z = MatMulInteger(x, w)  y = Cast <to = 1> (z) }"
    )
    assert (product.flops, product.matrix) == (2 * 2 * 5 * 7, True)
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18]>
        agraph (uint8[batch, 4, 16, 16] x, uint8[8, 4, 3, 3] w) => (uint8[batch, 8, 14, 14] y)
        <float s = {0.1}, uint8 z = {0}> { y = QLinearConv(x, s, z, w, s, z, s, z) }
    """)
    (convolution,) = operator_costs(model, 2, {})
    assert (convolution.flops, convolution.matrix) == (2 * 2 * (8 * 14 * 14) * (4 * 9), True)


@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 4),
    shared=st.integers(1, 3),
    queries=st.integers(1, 5),
    cached=st.integers(0, 6),
    size=st.integers(1, 4),
    value_size=st.integers(1, 4),
)
def test_attention_multiplies_every_pair_twice(
    batch: int, heads: int, shared: int, queries: int, cached: int, size: int, value_size: int
) -> None:
    """Grouped queries and a cache, against the same written as products."""
    query_heads = heads * shared
    shapes = {
        "q": [batch, query_heads, queries, size],
        "k": [batch, heads, queries, size],
        "v": [batch, heads, queries, value_size],
        "pk": [batch, heads, cached, size],
        "pv": [batch, heads, cached, value_size],
    }
    inputs = [helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()]
    outputs = [helper.make_empty_tensor_value_info(name) for name in ("y", "nk", "nv")]
    node = helper.make_node("Attention", ["q", "k", "v", "", "pk", "pv"], ["y", "nk", "nv"])
    graph = helper.make_graph([node], "attention", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    (cost,) = operator_costs(model, batch, {})
    context = queries + cached
    scores = 2 * batch * query_heads * queries * context * size
    values = 2 * batch * query_heads * queries * context * value_size
    assert cost.flops == scores + values
    assert cost.matrix


def test_attention_of_flat_heads() -> None:
    (cost,) = costs(
        "(float[batch, 6, 32] q, float[batch, 9, 32] k, float[batch, 9, 32] v) => (float[batch, 6, 32] y) "
        "{ y = Attention <q_num_heads = 4, kv_num_heads = 4> (q, k, v) }",
        opset=23,
    )
    assert cost.flops == 2 * (2 * 2 * 6 * 9 * 32)


def test_an_attention_chain_costs_what_the_single_operator_does() -> None:
    chain = costs(
        "(float[batch, 4, 6, 8] q, float[batch, 4, 8, 9] k, float[batch, 4, 9, 8] v) => "
        "(float[batch, 4, 6, 8] y) { s = MatMul(q, k)  p = Softmax(s)  y = MatMul(p, v) }"
    )
    single = costs(
        "(float[batch, 4, 6, 8] q, float[batch, 4, 9, 8] k, float[batch, 4, 9, 8] v) => "
        "(float[batch, 4, 6, 8] y) { y = Attention(q, k, v) }",
        opset=23,
    )
    assert sum(cost.flops for cost in chain if cost.matrix) == sum(cost.flops for cost in single)
    assert sum(cost.bytes_written for cost in chain) > single[0].bytes_written


def test_rotary_embedding_is_elementwise() -> None:
    (cost,) = costs(
        "(float[batch, 4, 6, 8] x, float[batch, 6, 4] c, float[batch, 6, 4] s) => (float[batch, 4, 6, 8] y) "
        "{ y = RotaryEmbedding(x, c, s) }",
        opset=23,
    )
    assert (cost.flops, cost.matrix) == (3 * 2 * 4 * 6 * 8, False)


def test_a_lookup_reads_the_rows_it_returns() -> None:
    (cost,) = costs("(int64[batch, 3] x) => (float[batch, 3, 16] y) { y = Gather(w, x) }", w=(1000, 16))
    assert cost.flops == 0
    assert cost.bytes_read == 2 * 3 * 16 * 4 + 2 * 3 * 8
    assert cost.weight_bytes == 1000 * 16 * 4


def test_expert_weights_picked_by_a_router_are_read_in_part() -> None:
    """Two of eight experts' matrices are read, all are held."""
    pick, product = costs(
        "(float[batch, 1, 16] x, int64[batch] e) => (float[batch, 1, 32] y) "
        "{ m = Gather(w, e)  y = MatMul(x, m) }",
        w=(8, 16, 32),
    )
    assert pick.weight_bytes == 8 * 16 * 32 * 4
    assert (pick.bytes_read, pick.launches, pick.cuttable) == (0, False, False)
    assert product.bytes_read == 2 * 16 * 32 * 4 + 2 * 16 * 4
    assert product.flops == 2 * 2 * 16 * 32
