"""Configs of decoders that learn a vector for each position: OPT and GPT-2."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from muplan.architecture.decoder import DecoderArchitecture, FusedProjection
from muplan.architecture.families import ACTIVATIONS, ActivationName, Count, Epsilon, Family, check_heads


class Opt(Family):
    """OPT (Zhang et al. 2022, arXiv 2205.01068), all sizes but the 350m, which norms after its blocks."""

    model_type: Literal["opt"]
    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    ffn_dim: Count
    vocab_size: Count
    max_position_embeddings: Count
    word_embed_proj_dim: Count | None = None
    activation_function: ActivationName = "relu"
    do_layer_norm_before: Literal[True] = True
    layer_norm_elementwise_affine: Literal[True] = True
    enable_bias: bool = True
    tie_word_embeddings: bool = True

    @model_validator(mode="after")
    def _whole(self) -> Self:
        check_heads(self.hidden_size, self.num_attention_heads)
        if self.word_embed_proj_dim not in (None, self.hidden_size):
            raise ValueError(
                f"expected word_embed_proj_dim to be hidden_size, got {self.word_embed_proj_dim}"
            )
        return self

    def architecture(self) -> DecoderArchitecture:
        """The network of this config."""
        root, layer = "model.decoder", "model.decoder.layers.{layer}"
        return DecoderArchitecture(
            model_type=self.model_type,
            layers=self.num_hidden_layers,
            hidden_size=self.hidden_size,
            heads=self.num_attention_heads,
            kv_heads=self.num_attention_heads,
            head_size=self.hidden_size // self.num_attention_heads,
            feed_forward_size=self.ffn_dim,
            vocabulary=self.vocab_size,
            max_tokens=self.max_position_embeddings,
            norm="layer",
            norm_epsilon=1e-5,
            activation=ACTIVATIONS[self.activation_function],
            position_rows=self.max_position_embeddings + 2,
            position_offset=2,
            projection_biases=self.enable_bias,
            output_bias=self.enable_bias,
            feed_forward_biases=self.enable_bias,
            tied_head=self.tie_word_embeddings,
            names={
                "embedding": f"{root}.embed_tokens",
                "positions": f"{root}.embed_positions",
                "attention": f"{layer}.self_attn",
                "attention_norm": f"{layer}.self_attn_layer_norm",
                "query": f"{layer}.self_attn.q_proj",
                "key": f"{layer}.self_attn.k_proj",
                "value": f"{layer}.self_attn.v_proj",
                "output": f"{layer}.self_attn.out_proj",
                "feed_forward": layer,
                "feed_forward_norm": f"{layer}.final_layer_norm",
                "up": f"{layer}.fc1",
                "down": f"{layer}.fc2",
                "final_norm": f"{root}.final_layer_norm",
                "head": "lm_head",
            },
        )


class Gpt2(Family):
    """GPT-2 (Radford et al. 2019)."""

    model_type: Literal["gpt2"]
    n_embd: Count
    n_layer: Count
    n_head: Count
    n_positions: Count
    vocab_size: Count
    n_inner: Count | None = None
    activation_function: ActivationName = "gelu_new"
    layer_norm_epsilon: Epsilon = 1e-5
    scale_attn_weights: Literal[True] = True
    scale_attn_by_inverse_layer_idx: Literal[False] = False
    tie_word_embeddings: bool = True

    @model_validator(mode="after")
    def _whole(self) -> Self:
        check_heads(self.n_embd, self.n_head)
        return self

    def architecture(self) -> DecoderArchitecture:
        """The network of this config."""
        layer = "transformer.h.{layer}"
        return DecoderArchitecture(
            model_type=self.model_type,
            layers=self.n_layer,
            hidden_size=self.n_embd,
            heads=self.n_head,
            kv_heads=self.n_head,
            head_size=self.n_embd // self.n_head,
            feed_forward_size=self.n_inner or 4 * self.n_embd,
            vocabulary=self.vocab_size,
            max_tokens=self.n_positions,
            norm="layer",
            norm_epsilon=self.layer_norm_epsilon,
            activation=ACTIVATIONS[self.activation_function],
            position_rows=self.n_positions,
            fused=FusedProjection(groups=1, order=("query", "key", "value")),
            projection_biases=True,
            output_bias=True,
            feed_forward_biases=True,
            tied_head=self.tie_word_embeddings,
            linear_transposed=False,
            names={
                "embedding": "transformer.wte",
                "positions": "transformer.wpe",
                "attention": f"{layer}.attn",
                "attention_norm": f"{layer}.ln_1",
                "projection": f"{layer}.attn.c_attn",
                "output": f"{layer}.attn.c_proj",
                "feed_forward": f"{layer}.mlp",
                "feed_forward_norm": f"{layer}.ln_2",
                "up": f"{layer}.mlp.c_fc",
                "down": f"{layer}.mlp.c_proj",
                "final_norm": "transformer.ln_f",
                "head": "lm_head",
            },
        )
