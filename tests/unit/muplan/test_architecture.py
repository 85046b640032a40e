"""Networks from Hugging Face configs: what is read, what is refused, and that the graphs compute it."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from muplan.architecture.config import GENERATIVE_TYPES, parse_generative, read_config
from muplan.architecture.decoder import DecoderArchitecture
from muplan.architecture.decoder_graph import decoder_graph
from muplan.architecture.generative import step_graph
from muplan.catalog import catalog_config, catalog_kind, catalog_names, llm_bytes, load_llm
from muserve.errors import InputError
from muserve.plan import ModelKind
from muserve.weights import fill_weights, open_session

OPT = {
    "model_type": "opt",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 99,
    "max_position_embeddings": 64,
}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 99}
BLOOM = {"model_type": "bloom", "n_embed": 48, "num_hidden_layers": 2, "n_head": 6, "vocab_size": 99}
CODEGEN = GPT2 | {"model_type": "codegen", "rotary_dim": 4}
QWEN3_MOE = LLAMA | {
    "model_type": "qwen3_moe",
    "head_dim": 16,
    "moe_intermediate_size": 24,
    "num_experts": 6,
    "num_experts_per_tok": 2,
}


def run(model: onnx.ModelProto, inputs: dict[str, Any]) -> dict[str, Any]:
    session = open_session(model, fill_weights(model, seed=3), threads=1)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


SWITCH = {
    "model_type": "switch_transformers",
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "num_experts": 3,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1,
    "vocab_size": 99,
}


def decoder(config: dict[str, Any]) -> DecoderArchitecture:
    net = parse_generative(config, "config.json")
    assert isinstance(net, DecoderArchitecture)
    return net


@pytest.mark.parametrize("config", [OPT, LLAMA, GPT2, BLOOM, CODEGEN, QWEN3_MOE])
def test_decode_continues_what_prefill_began(config: dict[str, Any]) -> None:
    """The logits of a prompt do not depend on how much of it was read token by token."""
    net = decoder(config)
    prefill, decode = (decoder_graph(net, step, dtype="fp32") for step in ("prefill", "decode"))
    ids = np.random.default_rng(0).integers(0, 99, (2, 9))
    expected = run(prefill, {"input_ids": ids})
    known = run(prefill, {"input_ids": ids[:, :6]})
    for position in range(6, 9):
        caches = {name.replace("present", "past"): known[name] for name in known if name != "logits"}
        known = run(decode, {"input_ids": ids[:, position : position + 1], **caches})
    assert expected["logits"].std() > 0.01
    for name, values in expected.items():
        np.testing.assert_allclose(known[name], values, atol=1e-5)


def test_an_encoder_decoder_answers_from_its_caches() -> None:
    """The prompt goes through the encoder once; what a decode step adds is one token's keys and values."""
    net = parse_generative(SWITCH, "config.json")
    prompt = np.random.default_rng(0).integers(0, 99, (2, 9))
    first = run(step_graph(net, "prefill", "fp32"), {"input_ids": prompt})
    assert first["present_key.1"].shape == (2, 4, 1, 8)
    assert first["cross_key.1"].shape == (2, 4, 9, 8)
    caches = {name.replace("present", "past"): first[name] for name in first if name != "logits"}
    second = run(step_graph(net, "decode", "fp32"), {"input_ids": np.array([[5], [6]]), **caches})
    np.testing.assert_array_equal(second["present_key.1"][:, :, :1], first["present_key.1"])
    assert second["present_key.1"].shape == (2, 4, 2, 8)
    other = run(step_graph(net, "prefill", "fp32"), {"input_ids": prompt[:, ::-1]})
    assert np.abs(other["logits"] - first["logits"]).max() > 1e-4


def test_half_precision_graphs_run_too() -> None:
    net = decoder(LLAMA)
    ids = np.arange(12).reshape(2, 6)
    half = run(decoder_graph(net, "prefill"), {"input_ids": ids})["logits"]
    full = run(decoder_graph(net, "prefill", dtype="fp32"), {"input_ids": ids})["logits"]
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, full, atol=2e-2)


def test_a_range_of_layers_is_a_graph_of_its_own() -> None:
    net = decoder(OPT)
    ids = np.arange(12).reshape(2, 6)
    whole = run(decoder_graph(net, "prefill", dtype="fp32"), {"input_ids": ids})
    first = run(decoder_graph(net, "prefill", layers=range(1), dtype="fp32"), {"input_ids": ids})
    second = run(
        decoder_graph(net, "prefill", layers=range(1, 2), dtype="fp32"),
        {"hidden_states.1": first.pop("hidden_states.1")},
    )
    assert sorted(first) == ["present_key.0", "present_value.0"]
    for name, values in {**first, **second}.items():
        np.testing.assert_allclose(values, whole[name], atol=1e-6)


@pytest.mark.parametrize("name", [n for n in catalog_names() if catalog_kind(n) is ModelKind.GENERATIVE])
def test_the_catalogue_ships_what_its_configs_say(name: str) -> None:
    """The graphs in the package are those that the builder makes of the config beside them today."""
    llm = load_llm(name)
    net = parse_generative(catalog_config(name), name)
    for graph, data, step in zip(
        (llm.prefill, llm.decode), llm_bytes(name), ("prefill", "decode"), strict=True
    ):
        assert graph == step_graph(net, step)
        assert gzip.decompress(data) == graph.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        ({"model_type": "mamba"}, r"model_type: expected one of bloom, .*got 'mamba'"),
        ({"hidden_size": "wide"}, r"hidden_size: .*got 'wide'"),
        ({"num_attention_heads": 5}, r"expected the number of heads to divide the width 32, got 5"),
        ({"do_layer_norm_before": False}, r"do_layer_norm_before: .*True, got False"),
        ({"word_embed_proj_dim": 16}, r"expected word_embed_proj_dim to be hidden_size, got 16"),
        ({"activation_function": "mish"}, r"activation_function: .*got 'mish'"),
    ],
)
def test_a_network_we_cannot_build_is_one_sentence(edit: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=rf"config\.json: .*{complaint}") as caught:
        parse_generative(OPT | edit, "config.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("{", "not valid JSON"), ("[]", "with a model_type"), ('{"a": 1}', "with a model_type")],
)
def test_a_file_that_is_no_config_is_named(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a readable config"):
        read_config(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=complaint):
        read_config(tmp_path / "config.json")


def test_a_sliding_window_bounds_the_context() -> None:
    windowed = LLAMA | {"model_type": "mistral", "sliding_window": 16}
    assert parse_generative(windowed, "config.json").max_tokens == 16
    unused = LLAMA | {"model_type": "qwen2", "sliding_window": 16, "use_sliding_window": False}
    assert parse_generative(unused, "config.json").max_tokens == 64


@pytest.mark.filterwarnings("default")  # of transformers itself
@pytest.mark.parametrize("family", GENERATIVE_TYPES)
def test_logits_are_those_of_transformers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for needed in ("torch", "transformers"):
        pytest.importorskip(needed, reason="the [train] extra is not installed")
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "tools")
    reference = pytest.importorskip("reference_decoders")
    assert reference.largest_difference(family) <= reference.LARGEST_DIFFERENCE
