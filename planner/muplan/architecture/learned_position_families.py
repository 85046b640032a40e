"""Configs of decoders that learn a vector for each position: OPT and GPT-2."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Self

from pydantic import model_validator

from muplan.architecture.decoder import DecoderArchitecture, FusedProjection
from muplan.architecture.families import (
    ACTIVATIONS,
    ActivationName,
    Count,
    Family,
    Gpt2Keys,
    Layers,
    check_heads,
    multi_head_decoder,
)


class Opt(Family):
    """OPT (Zhang et al. 2022, arXiv 2205.01068), all sizes but the 350m, which norms after its blocks."""

    model_type: Literal["opt"]
    hidden_size: Count
    num_hidden_layers: Layers
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
        network = multi_head_decoder(
            self.model_type,
            layers=self.num_hidden_layers,
            hidden_size=self.hidden_size,
            heads=self.num_attention_heads,
            feed_forward_size=self.ffn_dim,
            vocabulary=self.vocab_size,
            max_tokens=self.max_position_embeddings,
            norm_epsilon=1e-5,
            activation=ACTIVATIONS[self.activation_function],
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
        return replace(
            network,
            position_rows=self.max_position_embeddings + 2,
            position_offset=2,
            projection_biases=self.enable_bias,
            output_bias=self.enable_bias,
            feed_forward_biases=self.enable_bias,
            tied_head=self.tie_word_embeddings,
        )


class Gpt2(Gpt2Keys):
    """GPT-2 (Radford et al. 2019)."""

    model_type: Literal["gpt2"]
    scale_attn_weights: Literal[True] = True
    scale_attn_by_inverse_layer_idx: Literal[False] = False
    tie_word_embeddings: bool = True

    def architecture(self) -> DecoderArchitecture:
        """The network of this config."""
        network, layer = self._network(self.model_type), "transformer.h.{layer}"
        return replace(
            network,
            position_rows=self.n_positions,
            fused=FusedProjection(groups=1, order=("query", "key", "value")),
            projection_biases=True,
            output_bias=True,
            tied_head=self.tie_word_embeddings,
            linear_transposed=False,
            names={
                **network.names,
                "positions": "transformer.wpe",
                "projection": f"{layer}.attn.c_attn",
                "output": f"{layer}.attn.c_proj",
                "feed_forward_norm": f"{layer}.ln_2",
                "up": f"{layer}.mlp.c_fc",
                "down": f"{layer}.mlp.c_proj",
            },
        )
