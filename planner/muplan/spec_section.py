"""What all sections of a spec share: strict values, unknown keys are errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")]
NodeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]{0,62}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
HIGHEST_CV = 50.0
Weight = Annotated[float, Field(ge=0, le=1e6)]
Count = Annotated[int, Field(ge=1, le=4096)]


class Section(BaseModel):
    """A mapping in a spec."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def refuse_duplicates(what: str, names: Iterable[str]) -> None:
    """Raise ValueError if two of ``names``, those of every ``what``, are the same."""
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"expected distinct {what} names, got {name} {count} times")
