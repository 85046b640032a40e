"""Validation errors become one sentence that names file, key, value and expectation."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from muserve import errors
from muserve.errors import MuServeError, input_error


class _Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    slo_ms: float = Field(gt=0)


class _Outer(BaseModel):
    models: list[_Inner]


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (
            {"models": [{"slo_ms": -5}]},
            "spec.yaml: models[0].slo_ms: input should be greater than 0, got -5",
        ),
        ({"models": [{"slo_ms": 1, "sl0": 2}]}, "spec.yaml: models[0].sl0: unknown key"),
        ({}, "spec.yaml: models: required key is missing"),
        ({"models": [{}]}, "spec.yaml: models[0].slo_ms: required key is missing"),
    ],
)
def test_validation_error_is_one_sentence(document: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        _Outer.model_validate(document)

    assert str(input_error("spec.yaml", caught.value)) == sentence


def test_every_error_has_a_documented_exit_code() -> None:
    leaves = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, MuServeError)]

    assert len(leaves) >= 8
    for error in leaves:
        assert error.__name__ in (errors.__doc__ or "")
        assert error.exit_code in (1, 2, 3)
