"""What the length predictor counts in a prompt, and the hashes of its words.

Training (``muplan.predictor``) and serving (``mubackend.length_predictor``) both use this module, so
they cannot drift apart. Only the first ``HEAD_CHARS`` and the last ``TAIL_CHARS`` characters are read:
a prompt of a megabyte costs what one of a few kilobytes does. Nothing here raises on any ``str``.
"""

from __future__ import annotations

import math
import re
import zlib

import numpy as np
from numpy.typing import NDArray

FEATURES_VERSION = 2
"""Raise it whenever a feature is computed differently: older predictors are then refused."""
HEAD_CHARS = 1536
TAIL_CHARS = 2560

# Words whose presence anywhere in the prompt is a feature: what is asked for, and how much of it.
_KEYWORDS = (
    "write", "rewrite", "explain", "list", "create", "generate", "give", "summarize", "translate", "describe",
    "make", "continue", "convert", "fix", "answer", "tell", "show", "help", "act", "design", "provide",
    "suggest", "compare", "code", "function", "python", "javascript", "sql", "html", "error", "script",
    "table", "essay", "article", "blog", "story", "poem", "song", "email", "letter", "paragraph",
    "paragraphs", "sentence", "sentences", "words", "word", "title", "titles", "names", "ideas", "outline",
    "plan", "steps", "example", "examples", "short", "brief", "concise", "long", "detailed", "detail",
    "comprehensive", "one", "only", "just", "simple", "yes", "what", "how", "why", "who", "is", "can", "do",
    "you", "me", "i", "my",
    "this", "following", "prompt", "chapter", "scene", "dialogue", "review", "summary", "bullet", "json",
)  # fmt: skip
_KEYWORD_AT = {word: place for place, word in enumerate(_KEYWORDS)}
_OPENINGS = (
    "write", "create", "what", "how", "why", "who", "when", "where", "which", "is", "are", "can", "could",
    "do", "does", "explain", "give", "list", "make", "please", "act", "you", "i", "in", "tell", "generate",
    "summarize", "hi", "hello", "the", "continue", "rewrite", "translate", "describe",
)  # fmt: skip
_OPENING_AT = {word: place + 1 for place, word in enumerate(_OPENINGS)}
_COUNTED = "?!.,:;\"'()[]{}<>/\\#*-_=+&%$@|`\n\t"
_SHAPE_NAMES = (
    "chars", "words", "distinct_words", "mean_word_chars", "lines", "empty_lines", "last_line_chars",
    "first_line_chars", "capitals_share", "digits_share", "non_ascii_share", "wide_share",
    "other_alphabet_share", "ends_with", "first_word",
    "last_line_first_word", "numbers", "largest_number", "asked_amount", "links",
    "list_items", "fences", "sentences", "keywords_in_last_line",
)  # fmt: skip
FEATURE_NAMES: tuple[str, ...] = (
    *_SHAPE_NAMES,
    *(f"count_{ord(character):02x}" for character in _COUNTED),
    *(f"word_{word}" for word in _KEYWORDS),
)
"""The hand-made features, in the order of ``hand_features``."""

_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+(?:'[a-z]+)?"
)
_TOKEN = re.compile(_WORD.pattern + r"|[^\w\s]")
_NUMBER = re.compile(r"(?<![\d.,])\d{1,6}(?![\d])")
_AMOUNT = re.compile(
    r"\b(\d{1,5})(?:\s?-\s?\d{1,5})?[ -]{1,2}(?:\w{1,20} ){0,2}?"
    r"(words?|characters?|sentences?|paragraphs?|lines?|pages?|bullet|points?|items?|ideas|titles|names|"
    r"examples|questions|steps|tips|ways|reasons|things|headlines|keywords|tokens|minutes?)"
)
_TOKENS_EACH = {"word": 1.3, "character": 0.22, "sentence": 25.0, "paragraph": 90.0, "page": 500.0}
_LIST_ITEM = re.compile(r"^[ \t]{0,12}(?:[-*•]|\d{1,2}[.)])\s", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?。！？](?:\s|$)")
_SCRIPTS = (
    re.compile(r"[^\x00-\x7f]"),
    re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uff00-\uffef]"),
    re.compile(r"[\u0370-\u06ff]"),
)
_CAPITAL = re.compile(r"[A-Z]")
_DIGIT = re.compile(r"[0-9]")
_ENDINGS = "?.!:;,)]}\"'`>"


def window(text: str) -> str:
    """The part of ``text`` that is looked at: its head and its tail."""
    if len(text) <= HEAD_CHARS + TAIL_CHARS:
        return text
    return text[:HEAD_CHARS] + "\n" + text[-TAIL_CHARS:]


def hand_features(text: str) -> NDArray[np.float32]:
    """Counts, shares and keyword flags of ``text``: shape ``(len(FEATURE_NAMES),)``, all finite."""
    seen = window(text)
    low = seen.lower()
    counts = [math.log1p(seen.count(character)) for character in _COUNTED]
    words = _WORD.findall(low)
    flags = [0.0] * len(_KEYWORDS)
    for word in words:
        place = _KEYWORD_AT.get(word)
        if place is not None:
            flags[place] += 1.0
    return np.array(_shape(text, seen, low, words) + counts + flags, np.float32)


def _shape(text: str, seen: str, low: str, words: list[str]) -> list[float]:
    lines = seen.split("\n")
    filled = [line for line in lines if line.strip()] or [""]
    last_words = _WORD.findall(filled[-1].lower()[-600:])
    size = max(len(seen), 1)
    numbers = [int(found) for found in _NUMBER.findall(seen)]
    stripped = seen.rstrip()
    return [
        math.log1p(len(text)),
        math.log1p(len(words)),
        len(set(words)) / max(len(words), 1),
        sum(map(len, words)) / max(len(words), 1),
        math.log1p(len(lines)),
        math.log1p(len(lines) - len(filled)),
        math.log1p(len(filled[-1])),
        math.log1p(len(filled[0])),
        len(_CAPITAL.findall(seen)) / size,
        len(_DIGIT.findall(seen)) / size,
        *(0.0 if seen.isascii() else len(script.findall(seen)) / size for script in _SCRIPTS),
        float(_ENDINGS.find(stripped[-1]) + 1) if stripped else -1.0,
        float(_OPENING_AT.get(words[0], 0)) if words else -1.0,
        float(_OPENING_AT.get(last_words[0], 0)) if last_words else -1.0,
        math.log1p(len(numbers)),
        math.log1p(max(numbers, default=0)),
        _asked_amount(low),
        float(low.count("http")),
        math.log1p(len(_LIST_ITEM.findall(seen))),
        float(seen.count("```")),
        math.log1p(len(_SENTENCE_END.findall(seen))),
        float(sum(word in _KEYWORD_AT for word in last_words)),
    ]


def _asked_amount(low: str) -> float:
    """Log of the tokens that a phrase such as "in 300 words" or "10 ideas" asks for; -1 without one."""
    largest = -1.0
    for number, unit in _AMOUNT.findall(low):
        tokens = int(number) * _TOKENS_EACH.get(unit.rstrip("s"), 20.0)
        largest = max(largest, math.log1p(tokens))
    return largest


def token_hashes(text: str) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The distinct hashes of the words and neighbouring word pairs of ``text``, and their counts.

    The first three and the last three tokens count once more as "opens with" and "ends with".
    """
    tokens = _TOKEN.findall(window(text).lower())
    singles = np.fromiter(
        (zlib.crc32(token.encode("utf-8", "surrogatepass")) for token in tokens), np.uint32, len(tokens)
    )
    pairs = singles[:-1] * np.uint32(0x9E3779B1) ^ singles[1:]
    opening = singles[:3] * np.uint32(0x85EBCA6B) + np.uint32(1)
    ending = singles[-3:] * np.uint32(0xC2B2AE35) + np.uint32(2)
    return np.unique(np.concatenate([singles, pairs, opening, ending]), return_counts=True)
