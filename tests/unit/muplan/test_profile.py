"""Operator counts against published figures, and the laws of the roofline."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from muplan.architecture.config import parse_generative
from muplan.architecture.generative import GenerativeModel, generative_model
from muplan.catalog import default_dims, load_graph, load_llm
from muplan.profile.llm import decode_costs, decode_growth_ms, decode_law, prefill_costs, prefill_law
from muplan.profile.operators import OperatorCost, graph_dtype, operator_costs
from muplan.profile.roofline import GRAPH_RUNTIME, KernelTime, operator_time
from muplan.profile.shapes import dynamic_axes, infer_shapes, tensor_specs
from muplan.profile.structure import structure
from muplan.profile.symbolic import symbolic_dims
from muplan.sensitivity import stage_law
from muserve.errors import InputError
from muserve.gpu.parts import Part, load_part
from muserve.plan import Basis, Phase


@pytest.fixture(scope="module")
def v100() -> Part:
    return load_part("V100-16GB")


def costs_of(name: str, batch: int = 1) -> tuple[OperatorCost, ...]:
    return operator_costs(load_graph(name), batch, default_dims(name))


def matrix_gmacs(costs: tuple[OperatorCost, ...]) -> float:
    return sum(cost.flops for cost in costs if cost.matrix) / 2e9


def test_resnet_50_has_the_published_multiply_adds() -> None:
    """4.09 GMACs at 224 x 224: He et al. 2016 with the stride in the 3x3 filter (torchvision: 4.09)."""
    assert matrix_gmacs(costs_of("resnet-50")) == pytest.approx(4.09, abs=0.01)


def test_bert_base_has_the_published_multiply_adds() -> None:
    """85 M encoder weights x 128 tokens + 2 x 12 x 128^2 x 768 for attention: 11.2 GMACs, 22.4 GFLOPs."""
    costs = costs_of("bert-base")
    assert matrix_gmacs(costs) == pytest.approx(11.17, abs=0.02)
    assert sum(cost.flops for cost in costs) == pytest.approx(22.4e9, rel=0.01)


@pytest.mark.parametrize("name", ["bert-base", "resnet-50"])
def test_work_scales_with_the_batch_and_weights_do_not(name: str) -> None:
    one, four = costs_of(name), costs_of(name, batch=4)
    assert matrix_gmacs(four) == pytest.approx(4 * matrix_gmacs(one))
    assert sum(c.weight_bytes for c in four) == sum(c.weight_bytes for c in one)
    last = max(index for index, cost in enumerate(one) if cost.cuttable)
    assert four[last].cut_bytes == 4 * one[last].cut_bytes


def test_layers_cross_a_bert_cut_as_hidden_states_and_mask_only() -> None:
    """Shape arithmetic on the public inputs is repeated, not sent."""
    between = [cost for cost in costs_of("bert-base") if cost.op_type == "LayerNormalization"][1:-2]
    assert {len(cost.crossing) for cost in between} == {2}
    assert {cost.cut_bytes for cost in between} == {128 * 768 * 4 + 128 * 4}


def test_a_cut_never_tears_a_fused_kernel_apart() -> None:
    for name in ("bert-base", "resnet-50"):
        costs = costs_of(name)
        for place, following in pairwise(costs):
            if place.cuttable:
                assert following.launches
                assert 1 <= len(place.crossing) <= 4


def test_no_cut_is_offered_where_much_crosses() -> None:
    branches = [f"a{i} = MatMul(x, x)" for i in range(6)]
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        agraph (float[3, 3] x) => (float[18, 3] y)
        {{ {" ".join(branches)} y = Concat <axis = 0> ({", ".join(f"a{i}" for i in range(6))}) }}
    """)
    costs = operator_costs(model, 1, {})
    assert [cost.cut_bytes for cost in costs] == [36 * n for n in (1, 2, 3, 4, 5, 6, 0)]
    assert [len(cost.crossing) for cost in costs] == [1, 2, 3, 4, 0, 0, 0]
    assert [cost.cuttable for cost in costs] == [True] * 4 + [False] * 3


def test_elementwise_operators_fuse_into_the_kernel_before_them() -> None:
    costs = {cost.name: cost for cost in costs_of("resnet-50")}
    fused = [cost for cost in costs.values() if cost.op_type in ("Relu", "Add")]
    assert not any(cost.launches or cost.bytes_written for cost in fused)
    assert sum(cost.launches for cost in costs.values()) == 53 + 3  # convolutions; pool, mean, classifier


def test_shapes_follow_the_axes() -> None:
    model = load_graph("bert-base")
    assert dynamic_axes(model) == ("batch", "sequence")
    shapes = infer_shapes(model, {"batch": 2, "sequence": 7})
    assert shapes["last_hidden_state"].dims == (2, 7, 768)
    softmax = next(n.output[0] for n in model.graph.node if n.op_type == "Softmax")
    assert symbolic_dims(model)[softmax][1] == ("batch", 12, "sequence", "sequence")
    inputs, outputs = tensor_specs(model)
    assert [(spec.name, spec.dims) for spec in inputs] == [
        ("input_ids", (None, None)),
        ("attention_mask", (None, None)),
    ]
    assert [(spec.name, spec.dims) for spec in outputs] == [
        ("last_hidden_state", (None, None, 768)),
        ("pooler_output", (None, 768)),
    ]


def test_shape_arithmetic_that_onnx_cannot_follow_is_evaluated() -> None:
    """The target of the Reshape comes through a TopK, which has no data propagation."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        agraph (float[n, 6] x) => (float[a, b] y)
        <int64[1] one = {1}, int64[1] twelve = {12}>
        {
            shape = Shape(x)
            largest, where = TopK(shape, one)
            rest = Div(twelve, largest)
            target = Concat<axis = 0>(rest, largest)
            y = Reshape(x, target)
        }
    """)
    assert infer_shapes(model, {"n": 2})["y"].dims == (2, 6)


def test_shape_arithmetic_is_followed_however_deep_it_goes() -> None:
    """Each Reshape's target depends on the one before, and ONNX has no data propagation for Mod."""
    steps = " ".join(
        f"s{i} = Shape(x{i})  m{i} = Mod(s{i}, huge)  x{i + 1} = Reshape(x{i}, m{i})" for i in range(40)
    )
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        agraph (float[n, 6] x0) => (float[a, b] x40) <int64[1] huge = {{1000000}}> {{ {steps} }}
    """)
    assert infer_shapes(model, {"n": 2})["x40"].dims == (2, 6)


def test_long_chains_of_shape_arithmetic_are_seen_through() -> None:
    """The last Reshape needs nothing but the public input, over a thousand repeated operators."""
    steps = " ".join(f"s{i + 1} = Mod(s{i}, huge)" for i in range(1000))
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 18]>
        agraph (float[n, 6] x) => (float[a, b] y) <int64[1] huge = {{1000000}}>
        {{ s0 = Shape(x) {steps} z = Neg(x) y = Reshape(z, s1000) }}
    """)
    graph = structure(model)
    assert sorted(graph.owned) == [1001, 1002]
    assert set(graph.needs(1002)) == {"z", "x", "huge"}
    assert graph.lifetimes() == {"z": (1001, 1002)}


def test_a_declared_shape_counts_where_none_can_be_inferred() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        agraph (float[n] x) => (int64[1, n] y) { y = NonZero(x) }
    """)
    assert infer_shapes(model, {"n": 5})["y"].dims == (1, 5)


def test_a_missing_size_and_a_data_dependent_shape_are_named() -> None:
    with pytest.raises(InputError, match="dynamic axis sequence"):
        operator_costs(load_graph("bert-base"), 1, {})
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        agraph (float[n] x) => (int64[1, m] y) { y = NonZero(x) }
    """)
    with pytest.raises(InputError, match="shape of tensor y cannot be inferred"):
        infer_shapes(model, {"n": 2})


def test_sizes_that_do_not_fit_the_graph_are_refused() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        agraph (float[2, n] x, float[5, 2] w) => (float[2, 2] y) { y = MatMul(x, w) }
    """)
    assert infer_shapes(model, {"n": 5})["y"].dims == (2, 2)
    with pytest.raises(InputError, match=r"tensor y cannot be inferred.*Incompatible dimensions"):
        infer_shapes(model, {"n": 4})


def test_graph_dtype_is_that_of_most_weights() -> None:
    assert graph_dtype(load_graph("bert-base")) == "fp32"
    half = numpy_helper.from_array(np.ones(10, np.float16), "w")
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "half", [], [], [half])
    assert graph_dtype(helper.make_model(graph)) == "fp16"


def test_an_unknown_dtype_is_refused(v100: Part) -> None:
    with pytest.raises(InputError, match="no peak for fp8"):
        operator_time(costs_of("resnet-50")[0], v100, "fp8", GRAPH_RUNTIME.expected)


kernel_times = st.builds(
    KernelTime,
    launch_ms=st.floats(0.0, 0.02),
    memory_ms=st.floats(1e-4, 10.0),
    compute_ms=st.floats(1e-4, 10.0),
    clocked_memory=st.floats(0.0, 0.2),
)


@given(kernel_times)
def test_closed_form_sensitivity_is_the_logarithmic_derivative(kernel: KernelTime) -> None:
    step = 1e-5
    slope = (kernel.at(1 + step) - kernel.at(1 - step)) / (2 * step) / kernel.latency_ms
    assert kernel.sensitivity == pytest.approx(slope, abs=1e-6)
    assert 0 <= kernel.sensitivity <= 1


@given(kernel_times, st.floats(1.0, 3.0))
def test_time_stays_between_flat_and_inverse_clock(kernel: KernelTime, clock_ratio: float) -> None:
    assert kernel.latency_ms <= kernel.at(clock_ratio) * (1 + 1e-12)
    assert kernel.at(clock_ratio) <= kernel.latency_ms * clock_ratio * (1 + 1e-12)


def test_a_free_operator_takes_no_time() -> None:
    nothing = KernelTime(launch_ms=0, memory_ms=0, compute_ms=0, clocked_memory=0.03)
    assert nothing.latency_ms == 0
    assert nothing.sensitivity == 0


@pytest.mark.parametrize("name", ["bert-base", "resnet-50"])
def test_stage_laws_are_modelled_and_their_range_holds_the_value(name: str, v100: Part) -> None:
    law = stage_law(costs_of(name), v100, "fp32")
    assert law.phase is Phase.INFERENCE
    assert law.basis is Basis.MODELLED
    assert law.sensitivity.basis is Basis.MODELLED
    assert 0 <= law.sensitivity.low < law.sensitivity.value < law.sensitivity.high <= 1


def test_stage_times_add_up(v100: Part) -> None:
    costs = costs_of("bert-base")
    halves = [stage_law(part, v100, "fp32") for part in (costs[:200], costs[200:])]
    whole = stage_law(costs, v100, "fp32")
    assert sum(law.latency_ms for law in halves) == pytest.approx(whole.latency_ms)
    assert sum(law.latency_ms * law.sensitivity.value for law in halves) == pytest.approx(
        whole.latency_ms * whole.sensitivity.value
    )


def test_batches_and_narrow_types_move_bert_between_the_bounds(v100: Part) -> None:
    """Big fp32 batches are bound by compute, one fp16 request by launches and weight traffic."""
    assert stage_law(costs_of("bert-base", batch=32), v100, "fp32").sensitivity.value > 0.9
    assert stage_law(costs_of("bert-base"), v100, "fp16").sensitivity.value < 0.2


def test_bert_base_latency_is_near_the_published_one(v100: Part) -> None:
    """1.7 ms: 12-layer fp16 BERT, batch 1, 128 tokens, V100, ONNX Runtime (Microsoft, January 2020)."""
    assert stage_law(costs_of("bert-base"), v100, "fp16").latency_ms == pytest.approx(1.7, rel=0.25)


def test_opt_has_its_published_size() -> None:
    llm = load_llm("opt-1.3b")
    assert llm.parameters == 1_315_758_080  # transformers, OPTForCausalLM.num_parameters()
    assert llm.kv_bytes_per_token == 2 * 24 * 2048 * 2
    assert llm.weight_bytes == 2 * llm.parameters


def test_opt_on_a_v100_decodes_and_reads_at_plausible_speed(v100: Part) -> None:
    llm = load_llm("opt-1.3b")
    decode = decode_law(llm, v100, 1, 512)
    assert 5 < decode.latency_ms < 8
    assert decode.sensitivity.value < 0.1
    assert decode.phase is Phase.DECODE
    prefill = prefill_law(llm, v100, 256)
    assert 8 < prefill.latency_ms < 40
    assert prefill.phase is Phase.PREFILL


@pytest.fixture(scope="module")
def mistral() -> GenerativeModel:
    """Mistral-7B (Jiang et al. 2023, arXiv 2310.06825), the model of the V100 measurements."""
    config = {
        "model_type": "mistral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
    }
    return generative_model("mistral-7b", parse_generative(config, "mistral-7b"))


def test_the_laws_are_near_what_was_measured_on_a_v100(mistral: GenerativeModel, v100: Part) -> None:
    """Slowist-Lee/log_vllm: decode 24.2 ms at batch 1, 27.4 at 16; 625 tokens 161 ms at 1300 MHz, k .94."""
    one, many = (decode_law(mistral, v100, batch, 700) for batch in (1, 16))
    assert one.latency_ms == pytest.approx(24.2, rel=0.03)
    assert many.latency_ms == pytest.approx(27.4, rel=0.06)
    assert one.sensitivity.value < 0.05
    prefill = prefill_law(mistral, v100, 625)
    assert prefill.latency_ms == pytest.approx(161, rel=0.06)
    assert prefill.sensitivity.value == pytest.approx(0.94, abs=0.03)


def test_a_step_multiplies_every_active_weight_with_every_token(mistral: GenerativeModel) -> None:
    """2 operations per weight and token, less the embedding; attention adds 4 x context x width a layer."""
    tokens, batch, context = 64, 3, 500
    head = mistral.vocabulary * mistral.hidden_size
    layers = mistral.parameters - 2 * head
    attention = 4 * mistral.layers * mistral.heads * 128
    read = sum(cost.flops for cost in prefill_costs(mistral, 1, tokens) if cost.matrix)
    assert read == pytest.approx(2 * (tokens * layers + head) + attention * tokens**2, rel=1e-3)
    step = sum(cost.flops for cost in decode_costs(mistral, batch, context) if cost.matrix)
    assert step == pytest.approx(2 * batch * (layers + head) + attention * batch * (context + 1), rel=1e-3)


def test_a_decode_step_reads_the_weights_and_every_cache_once(mistral: GenerativeModel) -> None:
    """The caches are appended to in place and the scores stay on chip, so nothing else is of their size."""
    moved = {
        (batch, context): sum(c.bytes_read + c.bytes_written for c in decode_costs(mistral, batch, context))
        for batch, context in ((1, 1), (8, 2000))
    }
    embedding = mistral.vocabulary * mistral.hidden_size * mistral.element_bytes
    assert moved[1, 1] == pytest.approx(mistral.weight_bytes - embedding, rel=0.01)
    caches = 8 * 2000 * mistral.kv_bytes_per_token
    assert moved[8, 2000] - moved[1, 1] == pytest.approx(caches, rel=0.05)


def test_a_mixture_reads_the_experts_that_tokens_chose() -> None:
    """One token reads 8 of 128 experts; many read all of them, once."""
    llm = load_llm("qwen3-30b-a3b")
    embedding = llm.vocabulary * llm.hidden_size
    few, all_of_them = (
        sum(c.bytes_read for c in prefill_costs(llm, 1, tokens) if c.matrix) / 2 for tokens in (1, 200)
    )
    assert few == pytest.approx(llm.active_parameters - embedding, rel=0.01)
    assert all_of_them == pytest.approx(llm.parameters - embedding, rel=0.02)


@settings(max_examples=12, deadline=None)
@given(tokens=st.integers(1, 2000))
def test_longer_prompts_take_longer_and_feel_the_clock_more(tokens: int) -> None:
    llm, part = load_llm("opt-1.3b"), load_part("V100-16GB")
    short, long = prefill_law(llm, part, tokens), prefill_law(llm, part, tokens + 48)
    assert short.latency_ms < long.latency_ms
    assert short.sensitivity.value < long.sensitivity.value


@pytest.mark.parametrize("slots", [2, 8, 32])
def test_decode_growth_joins_its_ends(slots: int, v100: Part) -> None:
    llm = load_llm("opt-1.3b")
    growth = decode_growth_ms(llm, v100, slots, 512)
    one, full = (decode_law(llm, v100, batch, 512).latency_ms for batch in (1, slots))
    assert growth > 0
    assert one + (slots - 1) * growth == pytest.approx(full)
    assert decode_growth_ms(llm, v100, 1, 512) == 0
