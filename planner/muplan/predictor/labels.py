"""Counting the tokens of an answer with the tokenizer of the LLM that is served."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from muserve.errors import InputError
from muserve.token_pieces import pieces

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounter:
    """``count`` gives the number of tokens of a text; ``name`` says in a data set's header whose they are."""

    name: str
    count: Callable[[str], int]


TOKEN_PIECES = TokenCounter(name="muserve.token_pieces", count=lambda text: len(pieces(text)))
"""The default: no file, no network, and what the replay engine streams."""


def load_token_counter(path: Path) -> TokenCounter:
    """A counter from a Hugging Face ``tokenizer.json``, or from a model directory that holds one.

    Special tokens are not added, and the file's truncation and padding do not apply. Raises InputError
    when there is no such file, it is not a tokenizer, or the tokenizers library is missing.
    """
    file = path / TOKENIZER_FILE if path.is_dir() else path
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(
            f"--tokenizer {file}: cannot be read: {error.strerror or error}; expected a Hugging Face "
            f"{TOKENIZER_FILE} or a directory that holds one"
        ) from error
    try:
        tokenizers = importlib.import_module("tokenizers")
    except ModuleNotFoundError as error:
        raise InputError('--tokenizer needs the tokenizers library: pip install "muserve[serve]"') from error
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"--tokenizer {file}: not a Hugging Face tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    digest = hashlib.sha256(content).hexdigest()[:12]
    return TokenCounter(
        name=f"{file.parent.name}/{file.name} sha256:{digest}",
        count=lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids),
    )
