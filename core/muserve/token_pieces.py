"""The token unit of everything that has no tokenizer: text cut in pieces about a BPE token long.

The ``replay`` engine streams these pieces and the shipped length predictor is trained on their number,
so what is predicted is exactly what is generated, and neither needs a vocabulary. The cuts follow
the pre-tokenisation rule of cl100k_base (words with their leading space, digits by three, runs of
punctuation, line breaks), with long words cut every 10 letters.
"""

from __future__ import annotations

import re
import unicodedata

_PIECE = re.compile(
    r"'(?:[sdmtSDMT]|ll|ve|re|LL|VE|RE)(?![A-Za-z])"
    r"|[^\w\r\n]?(?:[A-Z]?[a-z]{1,10}|[A-Z]{1,3}(?![a-z]))"
    r"|[0-9]{1,3}"
    r"|[\U0001F1E6-\U0001F1FF]{2}"  # a flag is two regional indicators
    r"|[^\w\r\n]?[\u00aa-\u06ff]{1,2}"  # accented Latin, Greek, Cyrillic, Hebrew, Arabic
    r"|([.*=#~_+-])\1{1,15}"  # rulers and leaders
    r"| ?(?:(?![\s\w])[\x21-\x7e]|_){1,3}[\r\n]*"
    r"|\s*[\r\n]+"
    r"|[ \t]+(?=\S)"
    r"|\s+"
    r"|.",
    re.DOTALL,
)
_JOINER = "\u200d"
_ZERO_WIDTH_NON_JOINER = "\u200c"
_VIRAMA = 9  # canonical combining class of the sign that ties two Indic consonants together


def pieces(text: str) -> list[str]:
    """Cut ``text`` into pieces that may be streamed one by one; ``"".join`` gives it back.

    A cut never falls inside a user-perceived character: not before a combining mark, a variation
    selector, an emoji modifier or a trailing Hangul jamo, not beside a zero-width joiner, not
    between Indic consonants tied by a virama, not inside a flag or a CR LF pair.
    """
    parts = [match.group() for match in _PIECE.finditer(text)]
    return parts if text.isascii() else _whole_characters(parts)


def _whole_characters(parts: list[str]) -> list[str]:
    whole: list[str] = []
    for part in parts:
        if whole and (_extends(part[0]) or _expects_more(whole[-1][-1])):
            whole[-1] += part
        else:
            whole.append(part)
    return whole


def _extends(character: str) -> bool:
    """Whether ``character`` belongs to the one before it (Unicode's Extend, SpacingMark, jamo V and T)."""
    if character < "\u0300":
        return False
    return (
        character in (_JOINER, _ZERO_WIDTH_NON_JOINER)
        or unicodedata.category(character)[0] == "M"
        or "\U0001f3fb" <= character <= "\U0001f3ff"  # skin tones
        or "\U000e0020" <= character <= "\U000e007f"  # tags of regional flags
        or "\u1160" <= character <= "\u11ff"
        or "\ud7b0" <= character <= "\ud7fb"
    )


def _expects_more(character: str) -> bool:
    """Whether ``character`` pulls the next one to it (joiner, virama, leading Hangul jamo)."""
    if character < "\u0300":
        return False
    return (
        character == _JOINER
        or unicodedata.combining(character) == _VIRAMA
        or "\u1100" <= character <= "\u115f"
        or "\ua960" <= character <= "\ua97c"
    )
