"""The catalogue, the sources a spec may name, and ``muplan catalog``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper, parser

from muplan.catalog import (
    catalog_entry,
    catalog_kind,
    catalog_names,
    graph_bytes,
    llm_bytes,
    load_graph,
    load_llm,
)
from muplan.cli import main
from muplan.sources import load_source
from muplan.splitting import save_model
from muserve.errors import InputError
from muserve.plan import ModelKind
from muserve.weightless import missing_weights


def test_the_catalogue_holds_the_quickstart_models() -> None:
    assert {"bert-base", "opt-1.3b", "resnet-50"} <= set(catalog_names())
    assert catalog_kind("opt-1.3b") is ModelKind.GENERATIVE
    assert catalog_kind("bert-base") is ModelKind.SINGLE_PASS


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("bert-base", 109_482_240),  # transformers, BertModel(BertConfig()).num_parameters()
        ("bert-large", 335_141_888),
        ("roberta-base", 124_645_632),
        ("roberta-large", 355_359_744),
        ("resnet-50", 25_557_032 - 53_120 + 26_560),  # torchvision, less batch norms, plus folded biases
        # transformers, num_parameters() of each config; the papers and model cards give these rounded
        ("opt-1.3b", 1_315_758_080),
        ("opt-2.7b", 2_651_596_800),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("codegen-350m", 356_712_448),
        ("codegen-2b", 2_779_356_160),
        ("bloom-1b1", 1_065_314_304),
        ("bloom-3b", 3_002_557_440),
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-70b", 68_976_648_192),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("switch-base-16", 1_072_397_568),
        ("switch-base-32", 1_978_514_688),
    ],
)
def test_parameters_are_the_published_ones(name: str, parameters: int) -> None:
    assert catalog_entry(name).parameters == parameters


def test_the_catalogue_holds_the_models_of_the_paper_and_current_ones() -> None:
    papers = {
        *("bert-base", "bert-large", "bloom-1b1", "bloom-3b", "codegen-2b", "codegen-350m", "gpt2-large"),
        *("gpt2-xl", "opt-1.3b", "opt-2.7b", "resnet-50", "roberta-base", "roberta-large"),
        *("switch-base-16", "switch-base-32"),
    }
    assert papers | {"llama-2-7b", "llama-2-70b", "qwen3-8b", "qwen3-30b-a3b"} == set(catalog_names())


def test_more_experts_do_not_make_a_switch_transformer_work_more() -> None:
    """Each token takes one expert: T5-base's 223 M parameters plus the routers, whatever the total."""
    few, many = catalog_entry("switch-base-16"), catalog_entry("switch-base-32")
    assert many.parameters > 1.8 * few.parameters
    assert few.active_parameters == pytest.approx(222_903_552, rel=0.01)
    assert many.active_parameters == pytest.approx(222_903_552, rel=0.01)


def test_a_token_of_a_mixture_uses_few_of_its_parameters() -> None:
    """30.5 B in total, 3.3 B activated (Qwen3-30B-A3B's model card)."""
    entry = catalog_entry("qwen3-30b-a3b")
    assert entry.active_parameters / 1e9 == pytest.approx(3.3, abs=0.06)
    dense = catalog_entry("qwen3-8b")
    assert dense.active_parameters == dense.parameters


def test_caches_take_the_published_bytes_per_token() -> None:
    """512 KiB for Llama-2-7b; grouped queries leave the 70b with 320 KiB."""
    assert load_llm("llama-2-7b").kv_bytes_per_token == 512 * 1024
    assert load_llm("llama-2-70b").kv_bytes_per_token == 320 * 1024


def test_the_whole_catalogue_is_a_few_megabytes() -> None:
    names = catalog_names()
    single = [len(graph_bytes(n)) for n in names if catalog_kind(n) is ModelKind.SINGLE_PASS]
    pairs = [sum(map(len, llm_bytes(n))) for n in names if catalog_kind(n) is ModelKind.GENERATIVE]
    assert sum(single) + sum(pairs) < 4_000_000


@pytest.mark.parametrize("name", ["bert-base", "resnet-50"])
def test_graphs_are_small_and_without_exporter_traces(name: str) -> None:
    model = load_graph(name)
    assert len(graph_bytes(name)) < 500_000
    assert missing_weights(model)
    assert all(not node.doc_string and not node.metadata_props for node in model.graph.node)
    assert not model.graph.value_info
    inline = [tensor for tensor in model.graph.initializer if not tensor.external_data]
    assert all(
        len(tensor.raw_data) <= 1024 for tensor in inline if tensor.data_type == onnx.TensorProto.FLOAT
    )


def test_bert_weights_carry_their_hugging_face_names() -> None:
    names = {tensor.name for tensor in missing_weights(load_graph("bert-base"))}
    assert "embeddings.word_embeddings.weight" in names
    assert "encoder.layer.11.attention.self.query.weight.transposed" in names
    assert not any(name.startswith(("val_", "bert.")) for name in names)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(
        InputError, match=r"unknown catalogue model 'bert-huge'.*bert-base, .*opt-1.3b, .*resnet-50"
    ):
        load_graph("bert-huge")
    with pytest.raises(InputError, match=r"opt-1\.3b is generative"):
        load_graph("opt-1.3b")
    with pytest.raises(InputError, match="resnet-50 is not a generative model"):
        load_llm("resnet-50")


def test_catalogue_sources(tmp_path: Path) -> None:
    bert, opt = load_source("catalog:bert-base", tmp_path), load_source("catalog:opt-1.3b", tmp_path)
    assert bert.graph is not None
    assert (bert.kind, bert.llm, bert.has_weights) == (ModelKind.SINGLE_PASS, None, False)
    assert bert.default_dims == {"batch": 1, "sequence": 128}
    assert opt.llm is not None
    assert [value.name for value in opt.llm.prefill.graph.input] == ["input_ids"]
    assert [value.name for value in opt.llm.decode.graph.input][:2] == ["input_ids", "past_key.0"]
    assert (opt.kind, opt.graph) == (ModelKind.GENERATIVE, None)
    assert bert.fingerprint != opt.fingerprint


def small_model() -> onnx.ModelProto:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        small (float[batch, 600] x) => (float[batch, 600] y) { y = Mul(x, w) }
    """)
    model.graph.initializer.append(numpy_helper.from_array(np.full(600, 2, np.float32), "w"))
    return model


def test_an_onnx_file_keeps_its_own_weights(tmp_path: Path) -> None:
    save_model(small_model(), tmp_path / "small.onnx")
    loaded = load_source("onnx:small.onnx", tmp_path)
    assert loaded.graph == small_model()
    assert loaded.has_weights
    assert loaded.kind is ModelKind.SINGLE_PASS


def test_a_weightless_onnx_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "bert.onnx").write_bytes(graph_bytes("bert-base"))
    loaded = load_source("onnx:bert.onnx", tmp_path)
    assert not loaded.has_weights
    assert loaded.fingerprint == load_source("catalog:bert-base", tmp_path).fingerprint


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("onnx:missing.onnx", "missing.onnx: expected a readable ONNX file"),
        ("onnx:.", "expected a readable ONNX file"),
        ("bert-base", "expected catalog:NAME, onnx:PATH or hf:DIR-or-ID"),
        ("catalog:", "expected catalog:NAME, onnx:PATH or hf:DIR-or-ID"),
        ("catalog:nothing", "unknown catalogue model 'nothing'"),
    ],
)
def test_bad_sources(source: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=complaint):
        load_source(source, tmp_path)


def test_the_command_lists_models_and_gpus() -> None:
    result = CliRunner().invoke(main, ["catalog"], env={"COLUMNS": "160"})
    assert result.exit_code == 0
    for text in ("bert-base", "109.5 M", "resnet-50", "opt-1.3b"):
        assert text in result.output
    (v100,) = [line for line in result.output.splitlines() if "V100-16GB" in line]
    for text in ("135-1380", "945", "900", " 14 ", " 112 ", "100-250", "33-45", "measured"):
        assert text in v100
    (h100,) = [line for line in result.output.splitlines() if "H100" in line]
    assert "modelled" in h100


def test_the_command_shows_the_source_of_every_figure() -> None:
    result = CliRunner().invoke(main, ["catalog", "V100-16GB"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for text in ("knee_mhz", "945 MHz", "measured", "NV-DVFS-Benchmark", "data sheet"):
        assert text in result.output
    assert "middle: k 0.582, 10 clocks, 405 MHz x5.25" in result.output


def test_the_command_prints_json() -> None:
    result = CliRunner().invoke(main, ["catalog", "--json"])
    document = json.loads(result.stdout)
    assert [model["name"] for model in document["models"]] == list(catalog_names())
    gpus = {gpu["name"]: gpu for gpu in document["gpus"]}
    assert gpus["V100-16GB"]["sources"]["knee_mhz"]["basis"] == "measured"
    assert gpus["V100-16GB"]["sources"]["peak_tflops"]["basis"] == "data sheet"
    assert gpus["V100-16GB"]["response_basis"] == "measured"
    assert gpus["H100"]["response_basis"] == "modelled"


def test_the_command_refuses_unknown_names() -> None:
    result = CliRunner().invoke(main, ["catalog", "V1000"])
    assert result.exit_code == 2
    assert "the catalogue has no 'V1000': expected one of bert-base" in result.stderr
