"""Configs of decoders with relative positions and one matrix for queries, keys and values: CodeGen, BLOOM."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Self

from pydantic import AliasChoices, Field, model_validator

from muplan.architecture.decoder import DecoderArchitecture, FusedProjection, Rotary
from muplan.architecture.families import (
    Count,
    Epsilon,
    Family,
    Gpt2Keys,
    Layers,
    check_heads,
    multi_head_decoder,
)
from muplan.architecture.rotary import RopeParameters, inverse_frequencies


class CodeGen(Gpt2Keys):
    """CodeGen (Nijkamp et al. 2022, arXiv 2203.13474): parallel residual, made for 4 TPU cores."""

    model_type: Literal["codegen"]
    rotary_dim: Count
    tie_word_embeddings: Literal[False] = False

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.n_head % 4:
            raise ValueError(f"expected n_head to be a multiple of 4, got {self.n_head}")
        if self.rotary_dim % 2 or self.rotary_dim > self.n_embd // self.n_head:
            raise ValueError(f"expected an even rotary_dim within a head, got {self.rotary_dim}")
        return self

    def architecture(self) -> DecoderArchitecture:
        """The network of this config."""
        network, layer = self._network(self.model_type), "transformer.h.{layer}"
        frequencies = inverse_frequencies(self.rotary_dim, 10000.0, RopeParameters())
        return replace(
            network,
            rotary=Rotary(inverse_frequencies=frequencies, interleaved=True),
            fused=FusedProjection(groups=4, order=("query", "value", "key")),
            head_bias=True,
            parallel_residual=True,
            names={
                **network.names,
                "projection": f"{layer}.attn.qkv_proj",
                "output": f"{layer}.attn.out_proj",
                "up": f"{layer}.mlp.fc_in",
                "down": f"{layer}.mlp.fc_out",
            },
        )


class Bloom(Family):
    """BLOOM (Scao et al. 2022, arXiv 2211.05100): ALiBi, one matrix for each head's query, key and value."""

    model_type: Literal["bloom"]
    hidden_size: Count = Field(validation_alias=AliasChoices("hidden_size", "n_embed"))
    n_layer: Layers = Field(validation_alias=AliasChoices("n_layer", "num_hidden_layers"))
    n_head: Count = Field(validation_alias=AliasChoices("n_head", "num_attention_heads"))
    vocab_size: Count
    seq_length: Count = 2048
    layer_norm_epsilon: Epsilon = 1e-5
    apply_residual_connection_post_layernorm: Literal[False] = False
    tie_word_embeddings: Literal[True] = True

    @model_validator(mode="after")
    def _whole(self) -> Self:
        check_heads(self.hidden_size, self.n_head)
        return self

    def architecture(self) -> DecoderArchitecture:
        """The network of this config."""
        layer = "transformer.h.{layer}"
        network = multi_head_decoder(
            self.model_type,
            layers=self.n_layer,
            hidden_size=self.hidden_size,
            heads=self.n_head,
            feed_forward_size=4 * self.hidden_size,
            vocabulary=self.vocab_size,
            max_tokens=self.seq_length,
            norm_epsilon=self.layer_norm_epsilon,
            activation="gelu_tanh",
            names={
                "embedding": "transformer.word_embeddings",
                "embedding_norm": "transformer.word_embeddings_layernorm",
                "attention": f"{layer}.self_attention",
                "attention_norm": f"{layer}.input_layernorm",
                "projection": f"{layer}.self_attention.query_key_value",
                "output": f"{layer}.self_attention.dense",
                "feed_forward": f"{layer}.mlp",
                "feed_forward_norm": f"{layer}.post_attention_layernorm",
                "up": f"{layer}.mlp.dense_h_to_4h",
                "down": f"{layer}.mlp.dense_4h_to_h",
                "final_norm": "transformer.ln_f",
                "head": "lm_head",
            },
        )
        return replace(
            network,
            alibi=True,
            fused=FusedProjection(groups=self.n_head, order=("query", "key", "value")),
            projection_biases=True,
            output_bias=True,
            tied_head=True,
            embedding_norm=True,
        )
