"""Hugging Face configs of the Llama-like decoder families: RMS norm, gated feed-forward, rotary positions."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AliasChoices, Field, model_validator

from muplan.architecture.decoder import DecoderArchitecture, Experts, Rotary
from muplan.architecture.families import (
    ACTIVATIONS,
    ActivationName,
    Count,
    Epsilon,
    Family,
    check_heads,
)
from muplan.architecture.rotary import Positive, RopeParameters, inverse_frequencies


class LlamaLike(Family):
    """What these families share.

    A sliding attention window, where a config has one in use, bounds the context: within it the network is
    the one without a window.
    """

    model_type: str
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    vocab_size: Count
    max_position_embeddings: Count
    hidden_act: ActivationName = "silu"
    rms_norm_eps: Epsilon = 1e-6
    rope_theta: Positive | None = None
    rope_parameters: RopeParameters | None = Field(
        default=None, validation_alias=AliasChoices("rope_parameters", "rope_scaling")
    )
    sliding_window: Count | None = None
    use_sliding_window: bool | None = None
    attention_bias: bool | None = None
    mlp_bias: bool = False
    tie_word_embeddings: bool = False

    @model_validator(mode="after")
    def _whole(self) -> Self:
        check_heads(self.num_attention_heads, self.num_key_value_heads or self.num_attention_heads)
        if self.head_dim is None:
            check_heads(self.hidden_size, self.num_attention_heads)
        if self._head_size % 2:
            raise ValueError(f"expected an even head_dim, got {self._head_size}")
        return self

    def architecture(self) -> DecoderArchitecture:
        """The network of this config."""
        rope = self.rope_parameters or RopeParameters()
        theta = self.rope_theta or rope.rope_theta or 10000.0
        biased = self.model_type == "qwen2" or bool(self.attention_bias)
        return DecoderArchitecture(
            model_type=self.model_type,
            layers=self.num_hidden_layers,
            hidden_size=self.hidden_size,
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads or self.num_attention_heads,
            head_size=self._head_size,
            feed_forward_size=self.intermediate_size,
            vocabulary=self.vocab_size,
            max_tokens=self._max_tokens,
            norm="rms",
            norm_epsilon=self.rms_norm_eps,
            activation=ACTIVATIONS[self.hidden_act],
            gated=True,
            rotary=Rotary(
                inverse_frequencies=inverse_frequencies(self._head_size, theta, rope), interleaved=False
            ),
            projection_biases=biased,
            output_bias=biased and self.model_type != "qwen2",
            feed_forward_biases=self.mlp_bias,
            tied_head=self.tie_word_embeddings,
            head_norms=self.model_type in ("qwen3", "qwen3_moe"),
            experts=self._experts(),
            names=_NAMES | self._expert_names,
        )

    @property
    def _head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def _max_tokens(self) -> int:
        if self.sliding_window is None or self.use_sliding_window is False:
            return self.max_position_embeddings
        return min(self.max_position_embeddings, self.sliding_window)

    @property
    def _expert_names(self) -> dict[str, str]:
        return {}

    def _experts(self) -> Experts | None:
        return None


class Llama(LlamaLike):
    """Llama 2 and 3 (Touvron et al. 2023, arXiv 2307.09288), Mistral, Qwen2 and Qwen3."""

    model_type: Literal["llama", "mistral", "qwen2", "qwen3"]


class Mixtral(LlamaLike):
    """Mixtral (Jiang et al. 2024, arXiv 2401.04088): every feed-forward is a mixture of experts."""

    model_type: Literal["mixtral"]
    num_local_experts: Count = 8
    num_experts_per_tok: Count = 2

    @property
    def _expert_names(self) -> dict[str, str]:
        return _MIXTRAL_EXPERTS

    def _experts(self) -> Experts:
        return Experts(
            count=self.num_local_experts,
            chosen=self.num_experts_per_tok,
            size=self.intermediate_size,
            normalised=True,
            layers=(True,) * self.num_hidden_layers,
        )


class Qwen3Moe(LlamaLike):
    """Qwen3-MoE (Yang et al. 2025, arXiv 2505.09388)."""

    model_type: Literal["qwen3_moe"]
    num_experts: Count = Field(default=128, validation_alias=AliasChoices("num_experts", "num_local_experts"))
    num_experts_per_tok: Count = 8
    moe_intermediate_size: Count
    norm_topk_prob: bool = False
    decoder_sparse_step: Count = 1
    mlp_only_layers: tuple[Annotated[int, Field(ge=0)], ...] = ()

    @property
    def _expert_names(self) -> dict[str, str]:
        return _QWEN_EXPERTS

    def _experts(self) -> Experts:
        return Experts(
            count=self.num_experts,
            chosen=self.num_experts_per_tok,
            size=self.moe_intermediate_size,
            normalised=self.norm_topk_prob,
            layers=tuple(
                layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0
                for layer in range(self.num_hidden_layers)
            ),
        )


_LAYER = "model.layers.{layer}"
_NAMES = {
    "embedding": "model.embed_tokens",
    "attention": f"{_LAYER}.self_attn",
    "attention_norm": f"{_LAYER}.input_layernorm",
    "query": f"{_LAYER}.self_attn.q_proj",
    "key": f"{_LAYER}.self_attn.k_proj",
    "value": f"{_LAYER}.self_attn.v_proj",
    "output": f"{_LAYER}.self_attn.o_proj",
    "query_norm": f"{_LAYER}.self_attn.q_norm",
    "key_norm": f"{_LAYER}.self_attn.k_norm",
    "feed_forward": f"{_LAYER}.mlp",
    "feed_forward_norm": f"{_LAYER}.post_attention_layernorm",
    "gate": f"{_LAYER}.mlp.gate_proj",
    "up": f"{_LAYER}.mlp.up_proj",
    "down": f"{_LAYER}.mlp.down_proj",
    "final_norm": "model.norm",
    "head": "lm_head",
}
_QWEN_EXPERTS = {
    "router": f"{_LAYER}.mlp.gate",
    "expert_gate": f"{_LAYER}.mlp.experts.*.gate_proj.weight",
    "expert_up": f"{_LAYER}.mlp.experts.*.up_proj.weight",
    "expert_down": f"{_LAYER}.mlp.experts.*.down_proj.weight",
}
_MIXTRAL_EXPERTS = {
    "router": f"{_LAYER}.block_sparse_moe.gate",
    "expert_gate": f"{_LAYER}.block_sparse_moe.experts.*.w1.weight",
    "expert_up": f"{_LAYER}.block_sparse_moe.experts.*.w3.weight",
    "expert_down": f"{_LAYER}.block_sparse_moe.experts.*.w2.weight",
}
