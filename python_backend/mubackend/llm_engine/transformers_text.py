"""Tokens of a Hugging Face tokenizer as text, while they come."""

from __future__ import annotations

from typing import Protocol

from mubackend.llm_engine.stop_text import StopText
from mubackend.sampling import Sampling

_INCOMPLETE = "\ufffd"


class Tokenizer(Protocol):
    """The part of transformers' ``PreTrainedTokenizerBase`` that turns tokens into text."""

    def decode(
        self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str:
        """The text of ``token_ids``."""


class Detokenizer:
    """Text of one answer, token by token; joined it is the text of all tokens decoded together.

    A character that takes several tokens comes whole with the last of them. Each token is decoded with those
    of the text before it, because tokenizers give a token another text at the start than in the middle
    (two offsets into the tokens, as in Hugging Face's text-generation-inference).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._context = 0  # tokens before it have no influence any more
        self._sent = 0  # tokens before it have given their text

    def push(self, token: int) -> str:
        """What one more token makes certain; may be empty."""
        self._tokens.append(token)
        text = self._unsent()
        if text.endswith(_INCOMPLETE):
            return ""
        self._context, self._sent = self._sent, len(self._tokens)
        return text

    def rest(self) -> str:
        """What is left when no more tokens come, without a character that is not complete."""
        return self._unsent().rstrip(_INCOMPLETE)

    def _unsent(self) -> str:
        known = self._decode(self._tokens[self._context : self._sent])
        return self._decode(self._tokens[self._context :])[len(known) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class AnswerText:
    """What a client gets of the tokens of one answer; ``stopped`` once a stop string is complete."""

    def __init__(self, tokenizer: Tokenizer, sampling: Sampling) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopText(sampling)

    @property
    def stopped(self) -> bool:
        """Whether the answer is over."""
        return self._stops.stopped

    def push(self, token: int) -> str:
        """The text that is certain after one more token."""
        return self._stops.push(self._detokenizer.push(token))

    def rest(self) -> str:
        """What is left when no more tokens come."""
        if self.stopped:
            return ""
        last = self._stops.push(self._detokenizer.rest())
        return last if self.stopped else last + self._stops.rest()
