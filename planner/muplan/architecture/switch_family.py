"""Configs of Switch Transformers: T5 with a mixture of experts in every so many layers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from muplan.architecture.decoder import Experts
from muplan.architecture.encoder_decoder import EncoderDecoderArchitecture
from muplan.architecture.families import ACTIVATIONS, ActivationName, Count, Epsilon, Family


class Switch(Family):
    """Switch Transformer (Fedus et al. 2022, arXiv 2101.03961), one expert a token."""

    model_type: Literal["switch_transformers"]
    d_model: Count
    d_kv: Count
    d_ff: Count
    num_layers: Count
    num_decoder_layers: Count | None = None
    num_heads: Count
    num_experts: Count
    num_sparse_encoder_layers: Annotated[int, Field(ge=0)] = 3
    num_sparse_decoder_layers: Annotated[int, Field(ge=0)] = 3
    vocab_size: Count
    n_positions: Count = 512
    relative_attention_num_buckets: Annotated[int, Field(ge=4)] = 32
    relative_attention_max_distance: Annotated[int, Field(ge=32)] = 128
    layer_norm_epsilon: Epsilon = 1e-6
    dense_act_fn: ActivationName = "relu"
    decoder_start_token_id: Annotated[int, Field(ge=0)] = 0
    router_bias: Literal[False] = False
    tie_word_embeddings: bool = True

    def architecture(self) -> EncoderDecoderArchitecture:
        """The network of this config."""
        decoder_layers = self.num_decoder_layers or self.num_layers
        return EncoderDecoderArchitecture(
            model_type=self.model_type,
            layers=decoder_layers,
            encoder_layers=self.num_layers,
            hidden_size=self.d_model,
            heads=self.num_heads,
            head_size=self.d_kv,
            feed_forward_size=self.d_ff,
            vocabulary=self.vocab_size,
            max_tokens=self.n_positions,
            norm_epsilon=self.layer_norm_epsilon,
            activation=ACTIVATIONS[self.dense_act_fn],
            buckets=self.relative_attention_num_buckets,
            farthest=self.relative_attention_max_distance,
            start_token=self.decoder_start_token_id,
            tied_head=self.tie_word_embeddings,
            experts=Experts(
                count=self.num_experts,
                chosen=1,
                size=self.d_ff,
                normalised=False,
                layers=_sparse(decoder_layers, self.num_sparse_decoder_layers),
            ),
            encoder_experts=_sparse(self.num_layers, self.num_sparse_encoder_layers),
        )


def _sparse(layers: int, sparse: int) -> tuple[bool, ...]:
    """Which layers are mixtures: the second of every ``layers / sparse``, as transformers places them."""
    step = layers // sparse if sparse else 0
    return tuple(step == 1 or (step > 1 and layer % step == 1) for layer in range(layers))
