"""Cut a decoder into contiguous ranges of layers, each with a prefill and a decode graph of its own.

Every stage keeps the keys and values of its own layers; what crosses a cut is one hidden state a token.
``mubackend.stage.token_stage`` drives a chain of such stages. Weights keep their names, so that a seed or a
checkpoint gives the stages what it gives the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from muplan.architecture.decoder import DecoderArchitecture
from muplan.architecture.decoder_graph import decoder_graph
from muplan.architecture.graph import Dtype

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStage:
    """The graphs of ``layers``; the first stage holds the embedding too, the last the final norm and head."""

    layers: range
    prefill: onnx.ModelProto
    decode: onnx.ModelProto


def layer_stages(
    net: DecoderArchitecture, first_layers: Sequence[int], dtype: Dtype = "fp16"
) -> tuple[LayerStage, ...]:
    """The stages of ``net``, cut before each of ``first_layers``.

    Raises ValueError when these do not ascend within the network, so that a stage would have no layers.
    """
    bounds = [0, *first_layers, net.layers]
    if any(low >= high for low, high in pairwise(bounds)):
        raise ValueError(f"cuts {tuple(first_layers)} leave a stage of {net.layers} layers without any")
    return tuple(
        LayerStage(
            layers=range(low, high),
            prefill=decoder_graph(net, "prefill", layers=range(low, high), dtype=dtype),
            decode=decoder_graph(net, "decode", layers=range(low, high), dtype=dtype),
        )
        for low, high in pairwise(bounds)
    )
