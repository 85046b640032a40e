#!/usr/bin/env python3
"""Make the catalogue's weightless ONNX graphs from the Hugging Face configs in ``catalog_models.json``.

Nothing is downloaded. Single-pass networks go through ``muplan.architecture.torch_export``, which checks
each graph against the network it came from. Generative models are written by ``muplan.architecture`` once
small networks of their family have been held to transformers. Beside the graphs a sidecar JSON records the
config, the tool versions and what a user may want to know before loading.

    pip install -e '.[train]' && python tools/export_catalog.py

Running it twice with the same tool versions writes the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
import transformers
from reference_decoders import LARGEST_DIFFERENCE, largest_difference

from muplan.architecture.config import GENERATIVE_TYPES, parse_generative
from muplan.architecture.generative import generative_model
from muplan.architecture.graph import OPSET
from muplan.architecture.torch_export import export_graph, single_pass_export

MODELS = Path(__file__).with_name("catalog_models.json")
GRAPHS = Path(__file__).resolve().parent.parent / "planner" / "muplan" / "catalog" / "graphs"


def export_single_pass(name: str, entry: dict[str, Any], output: Path) -> None:
    """Write the graph of one encoder or image classifier and its sidecar."""
    export = single_pass_export(entry["config"], name)
    model = export_graph(export, name)
    model.producer_name = f"muserve tools/{Path(__file__).name}"
    data = model.SerializeToString(deterministic=True)
    (output / f"{name}.onnx").write_bytes(data)
    versions = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    parameters = float_elements(model)
    write_sidecar(name, entry, output, export.default_dims, parameters, versions)
    report(name, len(data), parameters)


def export_generative(name: str, entry: dict[str, Any], output: Path) -> None:
    """Write the prefill and decode graphs of one generative model and its sidecar."""
    llm = generative_model(name, parse_generative(entry["config"], name))
    size = 0
    for step, graph in (("prefill", llm.prefill), ("decode", llm.decode)):
        data = gzip.compress(graph.SerializeToString(deterministic=True), mtime=0)
        (output / f"{name}.{step}.onnx.gz").write_bytes(data)
        size += len(data)
    write_sidecar(name, entry, output, {}, llm.parameters, {})
    report(name, size, llm.parameters)


def float_elements(model: onnx.ModelProto) -> int:
    """Elements of all floating-point initialisers of rank 1 and more."""
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    return sum(math.prod(t.dims) for t in model.graph.initializer if t.data_type in floats and t.dims)


def write_sidecar(
    name: str,
    entry: dict[str, Any],
    output: Path,
    default_dims: dict[str, int],
    parameters: int,
    versions: dict[str, str],
) -> None:
    document = {
        **entry,
        "default_dims": default_dims,
        "opset": OPSET,
        "parameters": parameters,
        "tools": {"onnx": onnx.__version__, **versions},
    }
    (output / f"{name}.json").write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


def report(name: str, size_bytes: int, parameters: int) -> None:
    print(f"{name}: {size_bytes / 1e3:.0f} kB, {parameters / 1e6:.1f} M parameters", flush=True)


def check_families(families: set[str]) -> None:
    """Raise RuntimeError unless the graphs of small networks give the logits of transformers."""
    for family in sorted(families):
        difference = largest_difference(family)
        if not difference <= LARGEST_DIFFERENCE:
            raise RuntimeError(f"{family}: logits differ from those of transformers by {difference:.2g}")
        print(f"{family}: logits within {difference:.1g} of those of transformers", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the models of the catalogue into ``--output``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="models to write; all when none is given")
    parser.add_argument("--output", type=Path, default=GRAPHS, help="directory for the graphs")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    models = json.loads(MODELS.read_text())
    wanted = {name: models[name] for name in options.names or models}
    families = {entry["config"]["model_type"] for entry in wanted.values()}
    check_families(families & set(GENERATIVE_TYPES))
    for name, entry in wanted.items():
        generative = entry["config"]["model_type"] in GENERATIVE_TYPES
        (export_generative if generative else export_single_pass)(name, entry, options.output)


if __name__ == "__main__":
    main()
