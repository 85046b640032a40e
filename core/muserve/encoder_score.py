"""The score of a fine-tuned BERT-family encoder for a prompt: ONNX Runtime and a tokenizer, nothing else.

Two files beside a length predictor's others: ``encoder.onnx`` (token ids -> one score a prompt, the
higher the longer the answer) and ``tokenizer.json`` (Hugging Face's format). Training and serving cut
and tokenize a prompt through this module, so they cannot drift apart.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from muserve.errors import InputError
from muserve.length_features import window
from muserve.length_query import LengthQuery
from muserve.one_thread_session import open_one_thread_session

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ENCODER_FILE = "encoder.onnx"
TOKENIZER_FILE = "tokenizer.json"
LONGEST_INPUT_TOKENS = 128
HEAD_SHARE = 0.25
"""Of the tokens kept of a long prompt: this share from its beginning, the rest from its end."""
IDS, MASK, SCORE = "input_ids", "attention_mask", "score"


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in ``path``. Raises InputError when it is missing, broken or of no BERT family."""
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise InputError('the encoder needs tokenizers: pip install "muserve[serve]"') from error
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read, expected the encoder's tokenizer: {error}") from error
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{path}: not a Hugging Face tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if len(tokenizer.encode("").ids) < 2:
        raise InputError(f"{path}: expected a tokenizer that puts a first and a last token around a text")
    return tokenizer


def token_ids(tokenizer: Tokenizer, text: str, longest: int = LONGEST_INPUT_TOKENS) -> list[int]:
    """The ids of ``text``, special tokens included, at most ``longest``: its head and its tail."""
    around = tokenizer.encode("").ids
    ids = tokenizer.encode(_readable(window(text)), add_special_tokens=False).ids
    room = longest - len(around)
    if len(ids) > room:
        head = int(room * HEAD_SHARE)
        ids = ids[:head] + ids[len(ids) - (room - head) :]
    return [*around[:1], *ids, *around[1:]]


def _readable(text: str) -> str:
    """Half of a surrogate pair, which a tokenizer refuses, becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderScore:
    """A fine-tuned encoder, opened; ``fingerprint`` tells the two files in ``directory`` from any others."""

    group: ClassVar[str] = "encoder"
    directory: Path
    tokenizer: Any
    session: Any
    fingerprint: str

    @classmethod
    def load(cls, directory: Path) -> EncoderScore:
        """Open the encoder in ``directory``. Raises InputError when a file is missing or broken."""
        path = directory / ENCODER_FILE
        tokenizer = read_tokenizer(directory / TOKENIZER_FILE)
        try:
            graph = path.read_bytes()
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read, expected the encoder's ONNX file: {error.strerror}"
            ) from error
        session = open_one_thread_session(graph, path)
        found = {value.name for value in session.get_inputs()}, {v.name for v in session.get_outputs()}
        if found != ({IDS, MASK}, {SCORE}):
            raise InputError(
                f"{path}: takes {sorted(found[0])} and gives {sorted(found[1])}, expected an encoder that "
                f"takes {IDS} and {MASK} and gives {SCORE}"
            )
        fingerprint = encoder_fingerprint(directory)
        return cls(directory=directory, tokenizer=tokenizer, session=session, fingerprint=fingerprint)

    @property
    def names(self) -> tuple[str, ...]:
        """One feature. Its name holds the fingerprint: trees taught by one encoder refuse another."""
        return (f"encoder_score_{self.fingerprint}",)

    def score(self, text: str) -> float:
        """The score of any string: the expected median of the logarithm of its answer's tokens."""
        ids = np.array([token_ids(self.tokenizer, text)], np.int64)
        (scores,) = self.session.run([SCORE], {IDS: ids, MASK: np.ones_like(ids)})
        return float(scores[0])

    def values(self, query: LengthQuery) -> NDArray[np.float32]:
        """The score of the query's prompt, without what came before it, as a feature: shape ``(1,)``."""
        return np.array([self.score(query.prompt)], np.float32)

    def save(self, directory: Path) -> None:
        """Copy the encoder's two files to ``directory``."""
        for name in (ENCODER_FILE, TOKENIZER_FILE):
            shutil.copyfile(self.directory / name, directory / name)


def encoder_fingerprint(directory: Path) -> str:
    """Changes with any byte of the encoder's two files."""
    digest = hashlib.sha256()
    for name in (ENCODER_FILE, TOKENIZER_FILE):
        digest.update(hashlib.sha256((directory / name).read_bytes()).digest())
    return digest.hexdigest()[:16]
