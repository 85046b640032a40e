"""What a T5-like encoder-decoder with mixtures of experts (Switch Transformer) is made of. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from muplan.architecture.decoder import Activation, Experts


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderDecoderArchitecture:
    """``layers`` and ``experts.layers`` are the decoder's, ``encoder_experts`` the encoder's mixtures.

    ``buckets`` and ``farthest`` shape the relative position bias; ``tied_head`` also scales the head's input
    by 1 / sqrt(hidden).
    """

    model_type: str
    layers: int
    encoder_layers: int
    hidden_size: int
    heads: int
    head_size: int
    feed_forward_size: int
    vocabulary: int
    max_tokens: int
    norm_epsilon: float
    activation: Activation
    buckets: int
    farthest: int
    start_token: int
    tied_head: bool
    experts: Experts
    encoder_experts: tuple[bool, ...]

    @property
    def kv_heads(self) -> int:
        """Heads of the caches."""
        return self.heads

    @property
    def kv_width(self) -> int:
        """Elements of one token's keys (or values) in one layer, for answer and prompt tokens alike."""
        return self.heads * self.head_size
