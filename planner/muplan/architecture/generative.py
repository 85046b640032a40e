"""A generative model: its two graphs, and what a planner or an engine asks of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from muplan.architecture.decoder import DecoderArchitecture
from muplan.architecture.decoder_graph import decoder_graph
from muplan.architecture.encoder_decoder import EncoderDecoderArchitecture, encoder_decoder_graph
from muplan.architecture.graph import Dtype, Step, parameter_count

if TYPE_CHECKING:
    import onnx

DTYPE: Dtype = "fp16"
"""How generative models are served: vLLM's ``--dtype auto`` also takes fp32 weights as fp16, and bf16 costs
the same."""

_ELEMENT_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GenerativeModel:
    """A language model as its ``prefill`` and ``decode`` graphs.

    See ``decoder_graph`` and ``encoder_decoder`` for their inputs and outputs. ``layers`` and ``heads`` are
    the decoder's; ``kv_width`` elements are one token's keys (or values) in one layer. ``max_tokens`` bounds
    prompt and answer together. ``active_parameters`` are those that one token uses.
    """

    name: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    kv_width: int
    vocabulary: int
    max_tokens: int
    active_parameters: int
    prefill: onnx.ModelProto
    decode: onnx.ModelProto

    @property
    def dtype(self) -> str:
        """Number format of weights, activations and caches: a key of ``peak_tflops``."""
        return DTYPE

    @property
    def parameters(self) -> int:
        """All parameters; a matrix that is used twice counts once."""
        return parameter_count(self.prefill)

    @property
    def element_bytes(self) -> int:
        """Bytes of one weight or cache element."""
        return _ELEMENT_BYTES

    @property
    def weight_bytes(self) -> int:
        """Device memory of the weights."""
        return self.parameters * self.element_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Key-value cache of one token over all layers."""
        return 2 * self.layers * self.kv_width * self.element_bytes


def generative_model(
    name: str,
    net: DecoderArchitecture | EncoderDecoderArchitecture,
    graphs: tuple[onnx.ModelProto, onnx.ModelProto] | None = None,
) -> GenerativeModel:
    """The model of ``net``; ``graphs`` are its prefill and decode graphs where they are made already."""
    prefill, decode = graphs or (step_graph(net, "prefill"), step_graph(net, "decode"))
    return GenerativeModel(
        name=name,
        layers=net.layers,
        hidden_size=net.hidden_size,
        heads=net.heads,
        kv_heads=net.kv_heads,
        kv_width=net.kv_width,
        vocabulary=net.vocabulary,
        max_tokens=net.max_tokens,
        active_parameters=parameter_count(prefill) - _resting_parameters(net, prefill),
        prefill=prefill,
        decode=decode,
    )


def step_graph(
    net: DecoderArchitecture | EncoderDecoderArchitecture, step: Step, dtype: Dtype = DTYPE
) -> onnx.ModelProto:
    """The weightless graph of ``step`` of the whole network."""
    if isinstance(net, DecoderArchitecture):
        return decoder_graph(net, step, dtype=dtype)
    return encoder_decoder_graph(net, step, dtype=dtype)


def _resting_parameters(net: DecoderArchitecture | EncoderDecoderArchitecture, graph: onnx.ModelProto) -> int:
    """Parameters of the experts that a token does not choose: all tensors with an axis for experts."""
    if net.experts is None:
        return 0
    experts = sum(math.prod(t.dims) for t in graph.graph.initializer if len(t.dims) == 3 and t.external_data)
    return experts * (net.experts.count - net.experts.chosen) // net.experts.count
