"""Which models of a plan the OpenAI interface offers, and how it reaches each."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from muplan.openai.chat_form import ChatForm, read_chat_form
from muplan.repository.chat_template import DIRECTORY
from muserve.errors import InputError
from muserve.plan import ModelKind, Plan
from muserve.token_pieces import pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """``entrance`` is the Triton model to call; ``count_tokens`` counts those of a prompt."""

    name: str
    entrance: str
    form: ChatForm
    count_tokens: Callable[[str], int]


def served_models(plan: Plan, node_dir: Path, loaded: Collection[str]) -> dict[str, ServedModel]:
    """The generative models of ``plan`` that are ``loaded``, by name.

    Triton does not carry a client's cancellation into the steps of an ensemble, so the model behind it is
    called where that gives the same order: the front of a native queue, the engine of target embedded
    (it asks the predictor itself). InputError for a chat template or tokenizer that cannot be used.
    """
    return {
        model.name: ServedModel(
            name=model.name,
            entrance=_entrance(plan, model.name, loaded),
            form=read_chat_form(node_dir / DIRECTORY / f"{model.name}.json"),
            count_tokens=_counter(node_dir / "tokenizers" / f"{model.name}.json"),
        )
        for model in plan.models
        if model.kind is ModelKind.GENERATIVE and model.name in loaded
    }


def _entrance(plan: Plan, name: str, loaded: Collection[str]) -> str:
    if (front := f"{name}_front") in loaded:
        return front
    engine = f"{name}_engine"
    return engine if plan.target == "embedded" and engine in loaded else name


def _counter(file: Path) -> Callable[[str], int]:
    """By the served model's tokenizer, else in pieces of about four characters."""
    if not file.is_file():
        return lambda text: len(pieces(text))
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{file}: expected a tokenizer.json: {error}") from error
    return lambda text: len(tokenizer.encode(text).ids)
