"""A predictor's trees and card in one ONNX file, for programs that compute the features themselves."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from muserve.errors import InputError
from muserve.length_model import CARD_FILE, MODEL_FILE, LengthModel

CARD_KEY = "muserve.model_card"
NAMES_KEY = "muserve.feature_names"
_CHECKED_ROWS = 256
_ROUNDING_TOKENS = 0.01


def export_portable(directory: Path, output: Path) -> dict[str, Any]:
    """Write the graph of the predictor in ``directory`` to ``output``, its card and feature names within.

    The file's metadata has the card (CARD_KEY) and the ordered feature names (NAMES_KEY), both JSON. Before
    it takes its place ONNX Runtime must open it and agree with the predictor on random inputs. Returns
    what was checked. Raises InputError when the predictor is broken or the file cannot be written.
    """
    import onnx
    import onnxruntime

    model = LengthModel.load(directory)
    names = [f"{group.group} {name}" for group in model.groups for name in group.names]
    graph = onnx.load(str(directory / MODEL_FILE))
    card = (directory / CARD_FILE).read_text("utf-8")
    onnx.helper.set_model_props(graph, {CARD_KEY: card, NAMES_KEY: json.dumps(names)})
    content = graph.SerializeToString(deterministic=True)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    inputs = np.random.default_rng(0).normal(1.0, 3.0, (_CHECKED_ROWS, len(names))).astype(np.float32)
    (tokens,) = session.run(["tokens"], {"features": inputs})
    largest = float(np.abs(np.asarray(tokens, np.float64) - model.run(inputs)).max())
    metadata = session.get_modelmeta().custom_metadata_map
    if largest > _ROUNDING_TOKENS or json.loads(metadata[CARD_KEY]) != model.card:
        raise RuntimeError(f"the exported graph differs from {directory} by {largest} tokens")
    _write(output, content)
    return {
        "file": str(output),
        "size_bytes": len(content),
        "features": len(names),
        "checked_rows": _CHECKED_ROWS,
        "largest_difference_tokens": largest,
    }


def _write(output: Path, content: bytes) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=output.parent, delete=False) as file:
            fresh = Path(file.name)
            file.write(content)
        fresh.chmod(0o644)
        fresh.replace(output)
    except OSError as error:
        raise InputError(f"{output}: cannot be written: {error.strerror or error}") from error
