"""Which answers are labels to learn from, and why the others are not."""

from __future__ import annotations

from dataclasses import dataclass, replace

from muplan.predictor.dataset import Exchange


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaning:
    """A rule: answers of ``shortest_tokens`` to ``longest_tokens`` (None: any length above) are kept.

    ``keeps_cut``: answers that a limit cut are kept as right-censored labels; otherwise they are left
    out, their length says nothing of where the LLM would have stopped. ``limit_tokens``, for data that do
    not record why an answer ended: answers at least this long were cut (None: none was).
    """

    name: str
    shortest_tokens: int
    longest_tokens: int | None
    keeps_cut: bool = False
    limit_tokens: int | None = None

    def apply(self, exchange: Exchange) -> tuple[Exchange, str | None]:
        """``exchange`` with its label's kind set, and why it is not kept (None: it is)."""
        tokens = exchange.answer_tokens
        if self.limit_tokens is not None and tokens >= self.limit_tokens and not exchange.censored:
            exchange = replace(exchange, censored=True)
        return exchange, self._complaint(tokens, exchange.censored)

    def _complaint(self, tokens: int, cut: bool) -> str | None:
        if tokens == 0 and self.shortest_tokens > 0:
            return "empty answer"
        if tokens < self.shortest_tokens:
            return f"answer shorter than {self.shortest_tokens} tokens"
        if self.longest_tokens is not None and tokens > self.longest_tokens:
            return f"answer longer than {self.longest_tokens} tokens"
        if cut and not self.keeps_cut:
            return "answer cut by a limit"
        return None

    @property
    def kept_answers(self) -> str:
        """The rule in words."""
        longest = "or more" if self.longest_tokens is None else f"to {self.longest_tokens}"
        return f"{self.shortest_tokens} {longest} tokens" + ", cut ones as censored" * self.keeps_cut


DEFAULT_LONGEST_TOKENS = 1024
DEFAULT_CLEANING = Cleaning(name="default", shortest_tokens=2, longest_tokens=DEFAULT_LONGEST_TOKENS)
CLEANINGS = {
    cleaning.name: cleaning
    for cleaning in (
        DEFAULT_CLEANING,
        # The rule of the SSJF work, whose LLM was not let speak longer (Qiu et al., 2024).
        Cleaning(name="paper", shortest_tokens=2, longest_tokens=511),
        Cleaning(name="censored", shortest_tokens=2, longest_tokens=None, keeps_cut=True),
    )
}
"""By name, as ``--clean`` has them."""
