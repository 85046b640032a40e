"""A fine-tuned encoder as an ONNX file: exported in fp32, weights quantised to int8, both compared."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muplan.architecture.graph import OPSET
from muplan.predictor.encoder_network import require_torch
from muplan.predictor.encoder_training import FineTuned
from muserve.encoder_score import IDS, MASK, SCORE
from muserve.errors import InputError
from muserve.one_thread_session import open_one_thread_session

LARGEST_DIFFERENCE = 1e-3
"""How far, in log tokens, the exported fp32 graph's scores may be from the network's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """An encoder to be served. ``agreement``: Kendall's tau between the int8 and the fp32 scores."""

    graph: bytes
    agreement: float
    fp32_bytes: int
    compared: int


def export_int8(tuned: FineTuned, compare_on: Sequence[Sequence[int]]) -> Quantised:
    """Export ``tuned`` and quantise it, comparing the two on ``compare_on`` (token lists, at least two).

    Linear layers and embeddings get symmetric int8 weights a channel; activations are quantised as they
    come (dynamic quantisation). Raises RuntimeError when the exported graph computes something else.
    """
    with tempfile.TemporaryDirectory() as scratch:
        whole, small = Path(scratch) / "fp32.onnx", Path(scratch) / "int8.onnx"
        _export(tuned.network, whole)
        _quantise(whole, small)
        graph = small.read_bytes()
        fp32_bytes = whole.stat().st_size
        exact = graph_scores(whole.read_bytes(), compare_on)
    _check_export(tuned.network, exact, compare_on)
    rounded = graph_scores(graph, compare_on)
    return Quantised(
        graph=graph,
        agreement=_kendall_tau(exact, rounded),
        fp32_bytes=fp32_bytes,
        compared=len(compare_on),
    )


def graph_scores(graph: bytes, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """The ONNX ``graph``'s score of each token list, one by one as when serving; shape (n,)."""
    session = open_one_thread_session(graph, Path("encoder.onnx"))
    found = np.zeros(len(ids), np.float32)
    for place, one in enumerate(ids):
        row = np.array([one], np.int64)
        found[place] = session.run([SCORE], {IDS: row, MASK: np.ones_like(row)})[0][0]
    return found


def _export(network: Any, file: Path) -> None:
    torch = require_torch()

    class Served(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.network(input_ids, attention_mask)

    places = torch.arange(32).reshape(2, 16)
    example = {IDS: places, MASK: (places % 16 < torch.tensor([[16], [11]])).to(torch.int64)}
    longest = int(getattr(network.encoder.config, "max_position_embeddings", 512))
    sizes = {
        0: torch.export.Dim("batch", min=1, max=4096),
        1: torch.export.Dim("sequence", min=2, max=longest),
    }
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter speaks of its own insides
        program = torch.onnx.export(
            Served().eval(),
            kwargs=example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(example),
            output_names=[SCORE],
            dynamic_shapes=dict.fromkeys(example, sizes),
            verbose=False,
        )
    program.save(str(file), external_data=False)


def _quantise(whole: Path, small: Path) -> None:
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ModuleNotFoundError as error:
        raise InputError(f'quantising needs {error.name}: pip install "muserve[train]"') from error
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises on pre-processing, which changes nothing here
    try:
        quantize_dynamic(whole, small, per_channel=True, weight_type=QuantType.QInt8)
    finally:
        root.setLevel(level)


def _check_export(network: Any, found: NDArray[np.float32], ids: Sequence[Sequence[int]]) -> None:
    torch = require_torch()
    network.eval()
    with torch.inference_mode():
        for one, score in list(zip(ids, found.tolist(), strict=True))[:8]:
            row = torch.tensor([list(one)])
            expected = float(network(row, torch.ones_like(row))[0])
            if not abs(expected - score) <= LARGEST_DIFFERENCE:
                raise RuntimeError(f"the exported encoder gives {score}, the trained one {expected}")


def _kendall_tau(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    from scipy.stats import kendalltau

    tau = float(kendalltau(one, other).statistic)
    return tau if np.isfinite(tau) else 0.0
