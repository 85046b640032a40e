"""``hf:`` sources: directories in Hugging Face's layout, and ids on the hub."""

from __future__ import annotations

import importlib.util
import json
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from muplan.pipeline import plan_spec
from muplan.sources import load_source
from muplan.spec import read_spec
from muserve.errors import InputError
from muserve.plan import ModelKind
from muserve.weightless import missing_weights
from muserve.weights import open_session, read_weights

GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 99}
BERT = {
    "model_type": "bert",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 99,
}


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    return write_config(tmp_path / "tiny-gpt2", GPT2)


def write_config(directory: Path, config: dict[str, Any]) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_a_causal_language_model_needs_its_config_only(gpt2: Path) -> None:
    loaded = load_source("hf:tiny-gpt2", gpt2.parent)
    assert (loaded.kind, loaded.graph, loaded.has_weights) == (ModelKind.GENERATIVE, None, False)
    assert loaded.llm is not None
    assert (loaded.llm.name, loaded.llm.max_tokens, loaded.llm.vocabulary) == ("tiny-gpt2", 64, 99)


def test_a_checkpoint_beside_the_config_fills_its_graphs(gpt2: Path) -> None:
    """gpt2's checkpoints leave the name of the network out, and hold linear layers as [in, out]."""
    save_file = pytest.importorskip("safetensors.numpy").save_file
    llm = load_source(f"hf:{gpt2}", Path("/")).llm
    assert llm is not None
    random = np.random.default_rng(0)
    named = {
        tensor.name.removeprefix("transformer."): random.standard_normal(tuple(tensor.dims), np.float32)
        for tensor in missing_weights(llm.prefill)
    }
    save_file(named, gpt2 / "model.safetensors")
    assert load_source(f"hf:{gpt2}", Path("/")).has_weights
    session = open_session(llm.prefill, read_weights(llm.prefill, gpt2), threads=1)
    (logits,) = session.run(["logits"], {"input_ids": np.array([[1, 2, 3]])})
    assert np.isfinite(logits).all()


def test_a_language_model_is_planned_from_its_config(gpt2: Path) -> None:
    spec = {
        "cluster": {"nodes": [{"name": "n", "gpus": [{"part": "V100-16GB", "virtual": True}]}]},
        "models": [
            {
                "name": "mine",
                "source": "hf:tiny-gpt2",
                "kind": "generative",
                "slo_scale": 8,
                "tokens": {"prompt": 20, "output": 20},
                "load": {"rate_rps": 1},
            }
        ],
    }
    file = gpt2.parent / "spec.yaml"
    file.write_text(json.dumps(spec))
    (model,) = plan_spec(read_spec(file)).plan.models
    assert model.partitions[0].operators == 2


def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "torch" else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


def test_an_encoder_without_torch_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(tmp_path / "bert", BERT)
    without_torch(monkeypatch)
    with pytest.raises(InputError, match=r"config\.json: .*bert needs PyTorch.*muserve\[train\]"):
        load_source("hf:bert", tmp_path)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (None, "expected a readable config.json"),
        ({"model_type": "wav2vec2"}, "model_type: expected one of bert, .*got 'wav2vec2'"),
        (GPT2 | {"n_head": 5}, "heads to divide the width 32, got 5"),
        ({"n_head": 5}, "with a model_type"),
    ],
)
def test_a_directory_that_is_no_model_is_one_sentence(
    config: dict[str, Any] | None, complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir() if config is None else write_config(tmp_path / "m", config)
    with pytest.raises(InputError, match=rf"m/config\.json: .*{complaint}") as caught:
        load_source("hf:m", tmp_path)
    assert "\n" not in str(caught.value)


def test_an_id_comes_from_the_cache_first(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    class Unreachable:
        def head(self, _address: str, *, timeout: float) -> None:
            raise ConnectionError("no route\nto host")

    # The client's own download would ask again and again before it gives up.
    monkeypatch.setattr(hub, "get_session", Unreachable)
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_: pytest.fail("asked twice"))
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: str(gpt2 / "config.json"))
    loaded = load_source("hf:someone/gpt2-tiny", Path("/"))
    assert loaded.llm is not None
    assert loaded.llm.name == "gpt2-tiny"
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(InputError, match=r"hf:someone/gpt2-tiny: .*cache .*no route to host") as found:
        load_source("hf:someone/gpt2-tiny", Path("/"))
    assert hub.constants.HF_HUB_CACHE in str(found.value)


def test_what_cannot_be_an_id_is_taken_for_a_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a/b/c: expected a directory with config\.json, or an id"):
        load_source("hf:a/b/c", tmp_path)


@pytest.mark.filterwarnings("default")  # of the exporter itself
def test_an_encoder_and_a_classifier_are_exported(tmp_path: Path) -> None:
    """Without weights beside the config the graph is weightless; with them it gives the network's results."""
    for needed in ("torch", "transformers", "onnxscript"):
        pytest.importorskip(needed, reason="the [train] extra is not installed")
    vit = {
        "model_type": "vit",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "image_size": 32,
        "patch_size": 16,
    }
    for config, output in ((BERT, "last_hidden_state"), (vit, "logits")):
        name = config["model_type"]
        loaded = load_source(f"hf:{write_config(tmp_path / str(name), config)}", Path("/"))
        assert loaded.kind is ModelKind.SINGLE_PASS
        assert loaded.graph is not None
        assert loaded.graph.graph.output[0].name == output
        assert missing_weights(loaded.graph)
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "vit")
    network = transformers.AutoModelForImageClassification.from_config(config).eval()
    network.save_pretrained(tmp_path / "vit")
    graph = load_source("hf:vit", tmp_path).graph
    assert graph is not None
    assert not missing_weights(graph)
    images = torch.rand(3, 3, 32, 32)
    (logits,) = open_session(graph, {}, threads=1).run(["logits"], {"pixel_values": images.numpy()})
    np.testing.assert_allclose(logits, network(pixel_values=images).logits.detach().numpy(), atol=1e-4)
