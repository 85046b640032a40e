"""What the classes that read one family of Hugging Face configs share.

Each such class reads the keys of one ``model_type``, checks them, and says what network they stand for;
module names are those of transformers. Values that ask for a network not built here are refused.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from muplan.architecture.decoder import Activation

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


def check_heads(width: int, heads: int) -> None:
    """ValueError unless ``heads`` divides ``width``."""
    if width % heads:
        raise ValueError(f"expected the number of heads to divide the width {width}, got {heads}")
