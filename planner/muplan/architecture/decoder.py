"""What a decoder-only transformer is made of. Plain data, made by ``muplan.architecture.config``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotary:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864).

    ``inverse_frequencies`` are radians per position, one for each rotated pair; a head's elements beyond
    the ``2 * len(inverse_frequencies)`` first pass unrotated. ``interleaved`` pairs neighbours (GPT-J),
    else an element is paired with the one half the rotated width away (GPT-NeoX).
    """

    inverse_frequencies: tuple[float, ...]
    interleaved: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedProjection:
    """Queries, keys and values made by one matrix: ``groups`` blocks of columns, each in ``order``."""

    groups: int
    order: tuple[str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A mixture of experts: ``chosen`` of ``count`` feed-forwards of width ``size`` run for each token.

    ``layers`` says which layers have one; ``normalised``: the chosen experts' weights are scaled to one.
    """

    count: int
    chosen: int
    size: int
    normalised: bool
    layers: tuple[bool, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderArchitecture:
    """A decoder-only transformer.

    ``kv_heads`` divides ``heads`` (grouped queries). ``position_rows``: rows of a learned position table, 0
    without one; position p is row p + ``position_offset``. ``parallel_residual``: attention and
    feed-forward both read the layer's one norm. ``head_norms``: queries and keys are normalised per head.
    ``linear_transposed``: weight files hold matrices as [out, in]. ``names`` maps a role to the Hugging Face
    module name, with ``{layer}`` for the layer's index. ``max_tokens`` is the longest context.
    """

    model_type: str
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward_size: int
    vocabulary: int
    max_tokens: int
    norm: Literal["layer", "rms"]
    norm_epsilon: float
    activation: Activation
    names: Mapping[str, str]
    gated: bool = False
    rotary: Rotary | None = None
    alibi: bool = False
    position_rows: int = 0
    position_offset: int = 0
    fused: FusedProjection | None = None
    projection_biases: bool = False
    output_bias: bool = False
    feed_forward_biases: bool = False
    head_bias: bool = False
    tied_head: bool = False
    head_norms: bool = False
    embedding_norm: bool = False
    parallel_residual: bool = False
    linear_transposed: bool = True
    experts: Experts | None = None

    @property
    def width(self) -> int:
        """Elements of all query heads of one token."""
        return self.heads * self.head_size

    @property
    def kv_width(self) -> int:
        """Elements of one token's keys (or values) in one layer."""
        return self.kv_heads * self.head_size

    def has_experts(self, layer: int) -> bool:
        """Whether the feed-forward of ``layer`` is a mixture of experts."""
        return self.experts is not None and self.experts.layers[layer]
