"""Hugging Face configs of the decoder families with learned, ALiBi or GPT-J positions.

Each class reads the keys of one ``model_type``, checks them, and says what network they stand for; module
names are those of ``transformers``. Values that ask for another network than the one built here are refused.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from muplan.architecture.decoder import Activation, DecoderArchitecture, FusedProjection, Rotary
from muplan.architecture.rotary import RopeParameters, inverse_frequencies

Count = Annotated[int, Field(ge=1, le=2**24)]
Epsilon = Annotated[float, Field(gt=0, lt=1)]

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
ActivationName = Literal["gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish"]


class Family(BaseModel):
    """Keys that say nothing about the network (initialisation, token ids, dropout) are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


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


class CodeGen(Family):
    """CodeGen (Nijkamp et al. 2022, arXiv 2203.13474): parallel residual, made for 4 TPU cores."""

    model_type: Literal["codegen"]
    n_embd: Count
    n_layer: Count
    n_head: Count
    n_positions: Count
    rotary_dim: Count
    vocab_size: Count
    n_inner: Count | None = None
    activation_function: ActivationName = "gelu_new"
    layer_norm_epsilon: Epsilon = 1e-5
    tie_word_embeddings: Literal[False] = False

    @model_validator(mode="after")
    def _whole(self) -> Self:
        check_heads(self.n_embd, self.n_head)
        if self.n_head % 4:
            raise ValueError(f"expected n_head to be a multiple of 4, got {self.n_head}")
        if self.rotary_dim % 2 or self.rotary_dim > self.n_embd // self.n_head:
            raise ValueError(f"expected an even rotary_dim within a head, got {self.rotary_dim}")
        return self

    def architecture(self) -> DecoderArchitecture:
        """The network of this config."""
        layer = "transformer.h.{layer}"
        frequencies = inverse_frequencies(self.rotary_dim, 10000.0, RopeParameters())
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
            rotary=Rotary(inverse_frequencies=frequencies, interleaved=True),
            fused=FusedProjection(groups=4, order=("query", "value", "key")),
            feed_forward_biases=True,
            head_bias=True,
            parallel_residual=True,
            names={
                "embedding": "transformer.wte",
                "attention": f"{layer}.attn",
                "attention_norm": f"{layer}.ln_1",
                "projection": f"{layer}.attn.qkv_proj",
                "output": f"{layer}.attn.out_proj",
                "feed_forward": f"{layer}.mlp",
                "up": f"{layer}.mlp.fc_in",
                "down": f"{layer}.mlp.fc_out",
                "final_norm": "transformer.ln_f",
                "head": "lm_head",
            },
        )


class Bloom(Family):
    """BLOOM (Scao et al. 2022, arXiv 2211.05100): ALiBi, one matrix for each head's query, key and value."""

    model_type: Literal["bloom"]
    hidden_size: Count = Field(validation_alias=AliasChoices("hidden_size", "n_embed"))
    n_layer: Count = Field(validation_alias=AliasChoices("n_layer", "num_hidden_layers"))
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
        return DecoderArchitecture(
            model_type=self.model_type,
            layers=self.n_layer,
            hidden_size=self.hidden_size,
            heads=self.n_head,
            kv_heads=self.n_head,
            head_size=self.hidden_size // self.n_head,
            feed_forward_size=4 * self.hidden_size,
            vocabulary=self.vocab_size,
            max_tokens=self.seq_length,
            norm="layer",
            norm_epsilon=self.layer_norm_epsilon,
            activation="gelu_tanh",
            alibi=True,
            fused=FusedProjection(groups=self.n_head, order=("query", "key", "value")),
            projection_biases=True,
            output_bias=True,
            feed_forward_biases=True,
            tied_head=True,
            embedding_norm=True,
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


def check_heads(width: int, heads: int) -> None:
    """ValueError unless ``heads`` divides ``width``."""
    if width % heads:
        raise ValueError(f"expected the number of heads to divide the width {width}, got {heads}")
