"""Time and memory laws of decoder-only language models, from their architecture alone.

Per layer, with hidden size h, feed-forward size m, key-value width v = h * kv_heads / heads, n tokens in
the step and c the context they attend to (multiply-adds count as two operations):

    weights   2 h^2 + 2 h v (attention) + f h m (feed-forward; f = 3 when gated, else 2)
    products  2 n weights                  reads the weights once, however many tokens there are
    attention 4 n c h                      reads and writes the keys and values: 2 c v elements

and once per step the output head, 2 n_out h vocabulary. Prefill of N tokens is one step with n = N and a
mean context of N / 2; a decode step at batch B and context C has n = B and reads B caches of C tokens.
Counting as in Kaplan et al. 2020 (arXiv 2001.08361, table 1) and Pope et al. 2022 (arXiv 2211.05102).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import ConfigDict, TypeAdapter, ValidationError

from muplan.profile.roofline import EAGER, Efficiency, KernelTime, Runtime, kernel_time
from muplan.sensitivity import sum_law
from muserve.errors import InputError, input_error
from muserve.gpu.parts import Part
from muserve.plan import Phase, TimeLaw

_KERNELS_PER_LAYER = (
    11  # 2 norms, 4 attention projections or rotations, attention, cache write, 3 feed-forward
)
_ELEMENT_BYTES = {"fp16": 2, "fp32": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmArchitecture:
    """A decoder-only transformer. ``position_embeddings`` is 0 for rotary or ALiBi models."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str
    layers: int
    hidden_size: int
    feed_forward_size: int
    heads: int
    kv_heads: int
    vocabulary: int
    position_embeddings: int
    tied_embeddings: bool
    gated_feed_forward: bool
    biases: bool
    max_tokens: int
    dtype: str
    source: str

    @property
    def kv_width(self) -> int:
        """Elements of one token's keys (or values) in one layer."""
        return self.hidden_size * self.kv_heads // self.heads

    @property
    def layer_matrix_elements(self) -> int:
        """Elements of one layer's weight matrices."""
        attention = 2 * self.hidden_size * (self.hidden_size + self.kv_width)
        matrices = 3 if self.gated_feed_forward else 2
        return attention + matrices * self.hidden_size * self.feed_forward_size

    @property
    def parameters(self) -> int:
        """All parameters: embeddings, layers with their norms and biases, the final norm."""
        h = self.hidden_size
        vectors = 2 * h  # two norms, scale only
        if self.biases:  # norm shifts, four projections, two feed-forward matrices
            vectors += 2 * h + 2 * h + 2 * self.kv_width + self.feed_forward_size + h
        embeddings = (self.vocabulary * (1 if self.tied_embeddings else 2) + self.position_embeddings) * h
        return (
            embeddings + self.layers * (self.layer_matrix_elements + vectors) + (2 if self.biases else 1) * h
        )

    @property
    def element_bytes(self) -> int:
        """Bytes of one weight or cache element."""
        return _ELEMENT_BYTES[self.dtype]

    @property
    def weight_bytes(self) -> int:
        """Device memory of the weights."""
        return self.parameters * self.element_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Key-value cache of one token over all layers."""
        return 2 * self.layers * self.kv_width * self.element_bytes


def parse_llm(text: str | bytes, source: str) -> LlmArchitecture:
    """Parse and check an architecture's JSON; ``source`` names it in the InputError when it is bad."""
    try:
        architecture = _ADAPTER.validate_python(json.loads(text))
    except ValidationError as error:
        raise input_error(source, error) from error
    except ValueError as error:
        raise InputError(f"{source}: not valid JSON: {error}") from error
    if architecture.dtype not in _ELEMENT_BYTES:
        known = ", ".join(sorted(_ELEMENT_BYTES))
        raise InputError(f"{source}: dtype: expected one of {known}, got {architecture.dtype!r}")
    return architecture


def prefill_law(llm: LlmArchitecture, part: Part, prompt_tokens: int, runtime: Runtime = EAGER) -> TimeLaw:
    """Reading one prompt of ``prompt_tokens`` tokens, first token included."""
    step = _step(llm, part, tokens=prompt_tokens, context=prompt_tokens / 2, caches=1, heads_out=1)
    return sum_law(Phase.PREFILL, step, part, runtime)


def decode_law(
    llm: LlmArchitecture, part: Part, batch: int, context_tokens: float, runtime: Runtime = EAGER
) -> TimeLaw:
    """One token step of ``batch`` running requests with ``context_tokens`` in each cache."""
    step = _step(llm, part, tokens=batch, context=context_tokens, caches=batch, heads_out=batch)
    return sum_law(Phase.DECODE, step, part, runtime)


def decode_growth_ms(
    llm: LlmArchitecture, part: Part, slots: int, context_tokens: float, runtime: Runtime = EAGER
) -> float:
    """How much a decode step grows per further running request, averaged up to ``slots`` requests.

    With it ``decode_law(batch=1).latency_ms + (running - 1) * growth`` is exact at 1 and at ``slots``.
    """
    if slots < 2:
        return 0.0
    one = decode_law(llm, part, 1, context_tokens, runtime).latency_ms
    return (decode_law(llm, part, slots, context_tokens, runtime).latency_ms - one) / (slots - 1)


def _step(
    llm: LlmArchitecture, part: Part, *, tokens: float, context: float, caches: int, heads_out: int
) -> Callable[[Efficiency], list[KernelTime]]:
    """The kernels of one step, as a function of the runtime's coefficients."""
    width, size = llm.hidden_size, llm.element_bytes
    weights = llm.layer_matrix_elements
    activations = tokens * (6 * width + 2 * llm.feed_forward_size) * size
    cache_tokens = caches * context if tokens == caches else tokens
    head = llm.vocabulary * width

    def kernels(use: Efficiency) -> list[KernelTime]:
        def kernel(flops: float, moved_bytes: float, launches: float) -> KernelTime:
            return kernel_time(
                flops=flops,
                moved_bytes=moved_bytes,
                launches=launches,
                matrix=True,
                part=part,
                dtype=llm.dtype,
                use=use,
            )

        products = kernel(2 * tokens * weights, weights * size + activations, _KERNELS_PER_LAYER - 1)
        attention = kernel(4 * tokens * context * width, 2 * cache_tokens * llm.kv_width * size, 1)
        output = kernel(2 * heads_out * head, head * size + heads_out * llm.vocabulary * size, 3)
        return [products, attention] * llm.layers + [output]

    return kernels


_ADAPTER: TypeAdapter[LlmArchitecture] = TypeAdapter(LlmArchitecture)
