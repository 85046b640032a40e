"""What the classes that read one family of Hugging Face configs share.

Each such class reads the keys of one ``model_type``, checks them, and says what network they stand for;
module names are those of transformers. Values that ask for a network not built here are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from muplan.architecture.decoder import Activation, DecoderArchitecture

Count = Annotated[int, Field(ge=1, le=2**24)]
Layers = Annotated[int, Field(ge=1, le=1000)]
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


def check_heads(width: int, heads: int) -> None:
    """ValueError unless ``heads`` divides ``width``."""
    if width % heads:
        raise ValueError(f"expected the number of heads to divide the width {width}, got {heads}")


class Gpt2Keys(Family):
    """The keys of GPT-2's config, which CodeGen took over."""

    n_embd: Count
    n_layer: Layers
    n_head: Count
    n_positions: Count
    vocab_size: Count
    n_inner: Count | None = None
    activation_function: ActivationName = "gelu_new"
    layer_norm_epsilon: Epsilon = 1e-5

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        check_heads(self.n_embd, self.n_head)
        return self

    def _network(self, model_type: str) -> DecoderArchitecture:
        layer = "transformer.h.{layer}"
        return multi_head_decoder(
            model_type,
            layers=self.n_layer,
            hidden_size=self.n_embd,
            heads=self.n_head,
            feed_forward_size=self.n_inner or 4 * self.n_embd,
            vocabulary=self.vocab_size,
            max_tokens=self.n_positions,
            norm_epsilon=self.layer_norm_epsilon,
            activation=ACTIVATIONS[self.activation_function],
            names={
                "embedding": "transformer.wte",
                "attention": f"{layer}.attn",
                "attention_norm": f"{layer}.ln_1",
                "feed_forward": f"{layer}.mlp",
                "final_norm": "transformer.ln_f",
                "head": "lm_head",
            },
        )


def multi_head_decoder(
    model_type: str,
    *,
    layers: int,
    hidden_size: int,
    heads: int,
    feed_forward_size: int,
    vocabulary: int,
    max_tokens: int,
    norm_epsilon: float,
    activation: Activation,
    names: Mapping[str, str],
) -> DecoderArchitecture:
    """A decoder with layer norms, biased feed-forwards, and a key and a value head for each query head."""
    return DecoderArchitecture(
        model_type=model_type,
        layers=layers,
        hidden_size=hidden_size,
        heads=heads,
        kv_heads=heads,
        head_size=hidden_size // heads,
        feed_forward_size=feed_forward_size,
        vocabulary=vocabulary,
        max_tokens=max_tokens,
        norm="layer",
        norm_epsilon=norm_epsilon,
        activation=activation,
        feed_forward_biases=True,
        names=names,
    )
