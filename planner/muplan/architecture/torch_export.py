"""Graphs of single-pass networks through transformers and ``torch.onnx``; needs the [train] extra.

The network is built from its config, with random parameters or those of a checkpoint, exported with dynamic
axes, and its initialisers get the names of the Hugging Face parameters they hold. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from muplan.architecture.graph import OPSET
from muserve.errors import InputError
from muserve.weightless import TRANSPOSED_SUFFIX, strip_weights

if TYPE_CHECKING:
    import onnx

LARGEST_INLINE_BYTES = 1024
"""Constants up to this size keep their data."""

LARGEST_DIFFERENCE = 1e-4
"""How far an exported graph's results may be from those of the network it was made of."""

ENCODER_TYPES = ("bert", "distilbert", "roberta")
VISION_TYPES = ("resnet", "vit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """One network: a module around it, example inputs, their dynamic axes and the sizes it is profiled at.

    ``trained``: its parameters mean something, and go into the graph.
    """

    module: Any
    trained: bool
    example: Mapping[str, Any]
    dynamic_axes: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...]
    default_dims: dict[str, int]


def single_pass_export(config: Mapping[str, Any], source: str, checkpoint: Path | None = None) -> Export:
    """The export of a network by its Hugging Face ``config``, with the weights in directory ``checkpoint``.

    Raises InputError, naming ``source``, for a network of another kind, one that transformers refuses to
    build, and when PyTorch is not installed.
    """
    model_type = config.get("model_type")
    if model_type not in (*ENCODER_TYPES, *VISION_TYPES):
        known = ", ".join((*ENCODER_TYPES, *VISION_TYPES))
        raise InputError(f"{source}: model_type: expected one of {known}, got {model_type!r}")
    if any(importlib.util.find_spec(package) is None for package in ("torch", "transformers", "onnxscript")):
        raise InputError(
            f"{source}: exporting a {model_type} needs PyTorch and transformers: "
            "expected muserve[train] to be installed"
        )
    import transformers

    values = {key: value for key, value in config.items() if key != "model_type"}
    try:
        parsed = transformers.AutoConfig.for_model(model_type, **values, attn_implementation="eager")
        if model_type in ENCODER_TYPES:
            return _encoder(parsed, checkpoint)
        return _classifier(parsed, checkpoint)
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:  # transformers' own complaints
        sentence = " ".join(str(error).split())[:300]
        raise InputError(f"{source}: transformers cannot build this {model_type}: {sentence}") from error


def export_graph(export: Export, name: str) -> onnx.ModelProto:
    """The ONNX graph called ``name``, checked against the network; weightless unless that is trained.

    Raises RuntimeError when the graph computes something else.
    """
    if not export.trained:
        _randomise(export.module)
    model = _traced(export)
    _check(export, model, name)
    _restore_parameter_names(model, export.module)
    _clean(model)
    model.producer_name, model.producer_version = "muserve", ""
    model.graph.name = name
    return model if export.trained else strip_weights(model, LARGEST_INLINE_BYTES)


def _encoder(config: Any, checkpoint: Path | None) -> Export:
    """An encoder with the classical additive padding mask and one segment, as served single-pass."""
    import torch
    import transformers

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = _network(transformers.AutoModel, config, checkpoint)

        def forward(self, input_ids: Any, attention_mask: Any) -> tuple[Any, ...]:
            blocked = 1.0 - attention_mask[:, None, None, :].to(torch.float32)
            mask = blocked * torch.finfo(torch.float32).min
            more: dict[str, Any] = {}
            if config.model_type == "roberta":
                # Positions count real tokens from the padding index on: RobertaEmbeddings.
                counted = torch.cumsum(attention_mask, dim=1) * attention_mask
                more["position_ids"] = counted + config.pad_token_id
            if config.model_type != "distilbert":
                more["token_type_ids"] = torch.zeros_like(input_ids)
            output = self.network(
                input_ids=input_ids,
                attention_mask=mask,
                return_dict=True,
                **more,
            )
            return tuple(output[name] for name in names)

    names = (
        ("last_hidden_state",)
        if config.model_type == "distilbert"
        else ("last_hidden_state", "pooler_output")
    )
    tokens = torch.arange(32).reshape(2, 16)
    return Export(
        module=Encoder(),
        trained=checkpoint is not None,
        example={"input_ids": tokens, "attention_mask": (tokens % 16 < 11).to(torch.int64)},
        dynamic_axes={n: {0: "batch", 1: "sequence"} for n in ("input_ids", "attention_mask")},
        outputs=names,
        default_dims={"batch": 1, "sequence": 128},
    )


def _classifier(config: Any, checkpoint: Path | None) -> Export:
    """An image classifier, logits only."""
    import torch
    import transformers

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = _network(transformers.AutoModelForImageClassification, config, checkpoint)

        def forward(self, pixel_values: Any) -> tuple[Any]:
            return (self.network(pixel_values=pixel_values, return_dict=True).logits,)

    size = getattr(config, "image_size", 224)
    return Export(
        module=Classifier(),
        trained=checkpoint is not None,
        example={"pixel_values": torch.rand(2, config.num_channels, size, size)},
        dynamic_axes={"pixel_values": {0: "batch"}},
        outputs=("logits",),
        default_dims={"batch": 1},
    )


def _network(auto: Any, config: Any, checkpoint: Path | None) -> Any:
    return auto.from_config(config) if checkpoint is None else auto.from_pretrained(checkpoint, config=config)


def _randomise(module: Any) -> None:
    """Give every parameter its own small values, so that the exporter does not merge equal ones.

    Normalisation statistics stay at mean 0 and variance 1, hence folded biases that remain inline are
    small too.
    """
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.02)


def _traced(export: Export) -> onnx.ModelProto:
    """Trace the module with dynamic axes and return the optimised ONNX model, data included."""
    import torch

    dimensions = {
        axis: torch.export.Dim(axis, min=1, max=4096 if axis == "batch" else 512)
        for axes in export.dynamic_axes.values()
        for axis in axes.values()
    }
    program = torch.onnx.export(
        export.module.eval(),
        kwargs=dict(export.example),
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
    model: onnx.ModelProto = program.model_proto
    return model


def _check(export: Export, model: onnx.ModelProto, name: str) -> None:
    """Raise RuntimeError unless the graph computes what the module computes, at sizes of its own."""
    import torch

    from muserve.weights import open_session

    inputs = {key: torch.cat([tensor, tensor[:1]]) for key, tensor in export.example.items()}
    with torch.no_grad():
        expected = export.module(**inputs)
    results = open_session(model, {}, threads=2).run(None, {key: t.numpy() for key, t in inputs.items()})
    for output, result, wanted in zip(export.outputs, results, expected, strict=True):
        difference = float(np.abs(result - wanted.numpy()).max())
        if not difference <= LARGEST_DIFFERENCE:
            raise RuntimeError(f"{name}: {output} differs from the network's by {difference:.2g}")


def _restore_parameter_names(model: onnx.ModelProto, module: Any) -> None:
    """Name initialisers after the Hugging Face parameter they hold.

    The exporter folds a linear layer's transposition into a constant with a made-up name: that one gets
    ``TRANSPOSED_SUFFIX``. The wrapper module's own attribute name is dropped.
    """
    from onnx import numpy_helper

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


def _clean(model: onnx.ModelProto) -> None:
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
