"""The catalogue, the sources a spec may name, and ``muplan catalog``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper, parser

from muplan.catalog import catalog_entry, catalog_kind, catalog_names, graph_bytes, load_graph, load_llm
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
        ("resnet-50", 25_557_032 - 53_120 + 26_560),  # torchvision, less batch norms, plus folded biases
        ("opt-1.3b", 1_315_758_080),
    ],
)
def test_parameters_are_the_published_ones(name: str, parameters: int) -> None:
    assert catalog_entry(name).parameters == parameters


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
        InputError, match=r"unknown catalogue model 'bert-huge'.*bert-base, opt-1.3b, resnet-50"
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
    assert opt.llm == load_llm("opt-1.3b")
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
        ("hf:bert-base-uncased", "expected catalog:NAME or onnx:PATH, got 'hf:bert-base-uncased'"),
        ("bert-base", "expected catalog:NAME or onnx:PATH"),
        ("catalog:", "expected catalog:NAME or onnx:PATH"),
        ("catalog:nothing", "unknown catalogue model 'nothing'"),
    ],
)
def test_bad_sources(source: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=complaint):
        load_source(source, tmp_path)


def test_the_command_lists_models_and_gpus() -> None:
    result = CliRunner().invoke(main, ["catalog"], env={"COLUMNS": "160"})
    assert result.exit_code == 0
    for text in ("bert-base", "109.5 M", "resnet-50", "opt-1.3b", "V100-16GB", "900 GB/s"):
        assert text in result.output


def test_the_command_shows_the_source_of_every_figure() -> None:
    result = CliRunner().invoke(main, ["catalog", "V100-16GB"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for text in ("knee_mhz", "945 MHz", "measured", "NV-DVFS-Benchmark"):
        assert text in result.output


def test_the_command_prints_json() -> None:
    result = CliRunner().invoke(main, ["catalog", "--json"])
    document = json.loads(result.stdout)
    assert [model["name"] for model in document["models"]] == list(catalog_names())
    assert document["gpus"][0]["sources"]["knee_mhz"]["basis"] == "measured"


def test_the_command_refuses_unknown_names() -> None:
    result = CliRunner().invoke(main, ["catalog", "V1000"])
    assert result.exit_code == 2
    assert "the catalogue has no 'V1000': expected one of bert-base" in result.stderr
