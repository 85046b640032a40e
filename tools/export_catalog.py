#!/usr/bin/env python3
"""Make the catalogue's weightless ONNX graphs from Hugging Face configs; nothing is downloaded.

Single-pass models are built by transformers with random parameters, exported with ``torch.onnx``, and
stripped: every floating-point initialiser above ``LARGEST_INLINE_BYTES`` keeps its name, dims and dtype but
loses its data (``muserve.weights`` fills it in again). Generative models are written by
``muplan.architecture`` from the configs in ``catalog_models.json``, once small networks of their family have
been held to transformers. Beside the graphs a sidecar JSON records the config, the tool versions and what a
user may want to know before loading.

    pip install -e '.[train]' && python tools/export_catalog.py

Running it twice with the same tool versions writes the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import transformers
from onnx import numpy_helper
from reference_decoders import largest_difference

from muplan.architecture.config import parse_decoder
from muplan.architecture.generative import generative_model
from muplan.architecture.graph import parameter_count as weightless_parameters
from muserve.weightless import TRANSPOSED_SUFFIX, strip_weights

OPSET = 18
LARGEST_INLINE_BYTES = 1024
LARGEST_DIFFERENCE = 1e-4
GENERATIVE = Path(__file__).with_name("catalog_models.json")
GRAPHS = Path(__file__).resolve().parent.parent / "planner" / "muplan" / "catalog" / "graphs"


class BertEncoder(torch.nn.Module):
    """BertModel with the classical additive padding mask and one segment, as served single-pass."""

    def __init__(self, config: transformers.BertConfig) -> None:
        super().__init__()
        self.bert = transformers.BertModel(config)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        blocked = 1.0 - attention_mask[:, None, None, :].to(torch.float32)
        output = self.bert(
            input_ids=input_ids,
            attention_mask=blocked * torch.finfo(torch.float32).min,
            token_type_ids=torch.zeros_like(input_ids),
            return_dict=True,
        )
        return output.last_hidden_state, output.pooler_output


class ResNetClassifier(torch.nn.Module):
    """ResNetForImageClassification, logits only."""

    def __init__(self, config: transformers.ResNetConfig) -> None:
        super().__init__()
        self.classifier = transformers.ResNetForImageClassification(config)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.classifier(pixel_values=pixel_values, return_dict=True).logits,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """One graph to export: example inputs, their dynamic axes and the sizes it is profiled at."""

    name: str
    describes: str
    module: torch.nn.Module
    config: Any
    example: dict[str, torch.Tensor]
    dynamic_axes: dict[str, dict[int, str]]
    outputs: tuple[str, ...]
    default_dims: dict[str, int]


def exports() -> Iterator[Export]:
    """The graphs of the catalogue, one at a time because each holds its parameters in memory."""
    tokens = torch.arange(32).reshape(2, 16)
    bert = transformers.BertConfig(attn_implementation="eager")
    yield Export(
        name="bert-base",
        describes="BERT-base encoder (transformers.BertConfig defaults = bert-base-uncased)",
        module=BertEncoder(bert),
        config=bert,
        example={"input_ids": tokens, "attention_mask": (tokens % 16 < 11).to(torch.int64)},
        dynamic_axes={n: {0: "batch", 1: "sequence"} for n in ("input_ids", "attention_mask")},
        outputs=("last_hidden_state", "pooler_output"),
        default_dims={"batch": 1, "sequence": 128},
    )
    resnet = transformers.ResNetConfig(num_labels=1000)
    yield Export(
        name="resnet-50",
        describes="ResNet-50 classifier (transformers.ResNetConfig defaults = resnet-50, 1000 labels)",
        module=ResNetClassifier(resnet),
        config=resnet,
        example={"pixel_values": torch.rand(2, 3, 224, 224)},
        dynamic_axes={"pixel_values": {0: "batch"}},
        outputs=("logits",),
        default_dims={"batch": 1},
    )


def randomise(module: torch.nn.Module) -> None:
    """Give every parameter its own small values, so that the exporter does not merge equal ones.

    Normalisation statistics stay at mean 0 and variance 1, hence folded biases that remain inline are
    small too.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.02)


def export_onnx(export: Export) -> onnx.ModelProto:
    """Trace the module with dynamic axes and return the optimised ONNX model, data included."""
    dimensions = {
        axis: torch.export.Dim(axis, min=1, max=4096 if axis == "batch" else 512)
        for axes in export.dynamic_axes.values()
        for axis in axes.values()
    }
    program = torch.onnx.export(
        export.module.eval(),
        kwargs=export.example,
        dynamo=True,
        opset_version=OPSET,
        input_names=list(export.example),
        output_names=list(export.outputs),
        dynamic_shapes={
            name: {index: dimensions[axis] for index, axis in axes.items()}
            for name, axes in export.dynamic_axes.items()
        },
        verbose=False,
    )
    return program.model_proto


def check(export: Export, model: onnx.ModelProto) -> None:
    """Raise RuntimeError unless the graph computes what the module computes, at sizes of its own."""
    inputs = {name: torch.cat([tensor, tensor[:1]]) for name, tensor in export.example.items()}
    with torch.no_grad():
        expected = export.module(**inputs)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    results = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    for name, result, wanted in zip(export.outputs, results, expected, strict=True):
        difference = float(np.abs(result - wanted.numpy()).max())
        if not difference <= LARGEST_DIFFERENCE:
            raise RuntimeError(f"{export.name}: {name} differs from the module's by {difference:.2g}")


def restore_parameter_names(model: onnx.ModelProto, module: torch.nn.Module) -> None:
    """Name initialisers after the Hugging Face parameter they hold.

    The exporter folds a linear layer's transposition into a constant with a made-up name: that one gets
    ``TRANSPOSED_SUFFIX``. The wrapper module's own attribute name is dropped.
    """
    ((wrapper, _),) = module.named_children()
    transposed = {
        np.ascontiguousarray(parameter.detach().numpy().T).tobytes(): name + TRANSPOSED_SUFFIX
        for name, parameter in module.named_parameters()
        if parameter.ndim == 2
    }
    renamed = {}
    for tensor in model.graph.initializer:
        name = transposed.get(numpy_helper.to_array(tensor).tobytes(), tensor.name)
        if name.startswith(f"{wrapper}."):
            renamed[tensor.name] = name.removeprefix(f"{wrapper}.")
    for tensor in model.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]


def clean(model: onnx.ModelProto) -> None:
    """Drop stack traces, exporter metadata and intermediate types: not needed and not stable."""
    model.doc_string = ""
    model.graph.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    graph = model.graph
    for items in (graph.node, graph.input, graph.output, graph.initializer):
        for item in items:
            item.doc_string = ""
            del item.metadata_props[:]


def parameter_count(model: onnx.ModelProto) -> int:
    """Elements of all floating-point initialisers of rank 1 and more."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    return sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type in floats and t.dims)


def sidecar(export: Export, model: onnx.ModelProto) -> dict[str, Any]:
    """Provenance and defaults of one exported graph."""
    config = export.config.to_diff_dict()
    for key in ("transformers_version", "id2label", "label2id"):
        config.pop(key, None)
    return {
        "config": {"class": type(export.config).__name__, "values": config},
        "default_dims": export.default_dims,
        "describes": export.describes,
        "opset": OPSET,
        "parameters": parameter_count(model),
        "tools": {
            "onnx": onnx.__version__,
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
        },
    }


def export_single_pass(output: Path) -> None:
    """Write every graph of ``exports``."""
    for export in exports():
        randomise(export.module)
        model = export_onnx(export)
        check(export, model)
        restore_parameter_names(model, export.module)
        clean(model)
        model.producer_name, model.producer_version = "muserve tools/export_catalog.py", ""
        model.graph.name = export.name
        weightless = strip_weights(model, LARGEST_INLINE_BYTES)
        data = weightless.SerializeToString(deterministic=True)
        (output / f"{export.name}.onnx").write_bytes(data)
        write_sidecar(output / f"{export.name}.json", sidecar(export, weightless))
        report(export.name, len(data), parameter_count(weightless))


def export_generative(output: Path) -> None:
    """Write prefill and decode graphs of every model in ``catalog_models.json``."""
    held: set[str] = set()
    for name, entry in json.loads(GENERATIVE.read_text()).items():
        family = entry["config"]["model_type"]
        if family not in held:
            difference = largest_difference(family)
            if not difference <= LARGEST_DIFFERENCE:
                raise RuntimeError(f"{family}: logits differ from those of transformers by {difference:.2g}")
            held.add(family)
        llm = generative_model(name, parse_decoder(entry["config"], name))
        size = 0
        for step, graph in (("prefill", llm.prefill), ("decode", llm.decode)):
            data = gzip.compress(graph.SerializeToString(deterministic=True), mtime=0)
            (output / f"{name}.{step}.onnx.gz").write_bytes(data)
            size += len(data)
        document = {
            **entry,
            "default_dims": {},
            "opset": OPSET,
            "parameters": weightless_parameters(llm.prefill),
            "tools": {"onnx": onnx.__version__},
        }
        write_sidecar(output / f"{name}.json", document)
        report(name, size, llm.parameters)


def write_sidecar(file: Path, document: dict[str, Any]) -> None:
    file.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


def report(name: str, size_bytes: int, parameters: int) -> None:
    print(f"{name}: {size_bytes / 1e3:.0f} kB, {parameters / 1e6:.1f} M parameters")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write every model of the catalogue into ``--output``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=GRAPHS, help="directory for the graphs")
    output: Path = parser.parse_args(arguments).output
    output.mkdir(parents=True, exist_ok=True)
    export_generative(output)
    export_single_pass(output)


if __name__ == "__main__":
    main()
