"""A generative model: its two graphs, and what a planner or an engine asks of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from muplan.architecture.decoder import DecoderArchitecture
from muplan.architecture.decoder_graph import decoder_graph
from muplan.architecture.encoder_decoder import EncoderDecoderArchitecture, encoder_decoder_graph
from muplan.architecture.graph import Dtype, Step, parameter_count
from muserve.weightless import missing_weights

if TYPE_CHECKING:
    import onnx

DTYPE: Dtype = "fp16"
"""How generative models are served: vLLM's ``--dtype auto`` also takes fp32 weights as fp16, and bf16 costs
the same."""

_ELEMENT_BYTES = 2

Network = DecoderArchitecture | EncoderDecoderArchitecture


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GenerativeModel:
    """A language model as its ``prefill`` and ``decode`` graphs, made from ``net``.

    See ``decoder_graph`` and ``encoder_decoder`` for their inputs and outputs.
    """

    name: str
    net: Network
    prefill: onnx.ModelProto
    decode: onnx.ModelProto

    @property
    def layers(self) -> int:
        """Layers that keep keys and values: those of the decoder."""
        return self.net.layers

    @property
    def hidden_size(self) -> int:
        """Elements of one token's hidden state, which is what layers hand on."""
        return self.net.hidden_size

    @property
    def heads(self) -> int:
        """Attention heads of one layer."""
        return self.net.heads

    @property
    def kv_heads(self) -> int:
        """Heads of the cache of one layer."""
        return self.net.kv_heads

    @property
    def vocabulary(self) -> int:
        """Tokens there are."""
        return self.net.vocabulary

    @property
    def max_tokens(self) -> int:
        """Bound of prompt and answer together."""
        return self.net.max_tokens

    @property
    def dtype(self) -> str:
        """Number format of weights, activations and caches: a key of ``peak_tflops``."""
        return DTYPE

    @property
    def parameters(self) -> int:
        """All parameters; a matrix that is used twice counts once."""
        return parameter_count(self.prefill)

    @property
    def active_parameters(self) -> int:
        """Those that one token uses: all but the experts it does not choose."""
        experts = self.net.experts
        if experts is None:
            return self.parameters
        stacked = sum(math.prod(t.dims) for t in missing_weights(self.prefill) if len(t.dims) == 3)
        return self.parameters - stacked * (experts.count - experts.chosen) // experts.count

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
        return 2 * self.layers * self.net.kv_width * self.element_bytes


def generative_model(name: str, net: Network) -> GenerativeModel:
    """The model of ``net`` with its graphs."""
    return GenerativeModel(
        name=name, net=net, prefill=step_graph(net, "prefill"), decode=step_graph(net, "decode")
    )


def step_graph(net: Network, step: Step, dtype: Dtype = DTYPE) -> onnx.ModelProto:
    """The weightless graph of ``step`` of the whole network."""
    if isinstance(net, DecoderArchitecture):
        return decoder_graph(net, step, dtype=dtype)
    return encoder_decoder_graph(net, step, dtype=dtype)
