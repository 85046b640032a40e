"""The next token of one answer, from its scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mubackend.sampling import Sampling

if TYPE_CHECKING:
    import torch

_GREEDY_BELOW = 1e-5


class TokenChoice:
    """Chooses as vLLM does: temperature, then ``top_k``, then ``top_p``; 0 degrees take the likeliest token.

    Every answer has random numbers of its own, so with a seed it is the same in any company.
    """

    def __init__(self, sampling: Sampling, end_tokens: frozenset[int]) -> None:
        self._least = 0 if sampling.ignore_eos else sampling.min_tokens
        self._end_tokens = sorted(end_tokens)
        self._warpers = None if sampling.temperature < _GREEDY_BELOW else _warpers(sampling)
        self._random = None if self._warpers is None else _generator(sampling.seed)

    def choose(self, scores: torch.Tensor, likeliest: int, generated: int) -> int:
        """A token for ``scores``, [vocabulary], the highest of which is ``likeliest``'s.

        No token that ends the answer before ``min_tokens`` are ``generated``.
        """
        import torch

        forbidden = self._end_tokens if generated < self._least else []
        if self._warpers is None:
            if likeliest not in forbidden:
                return likeliest
            scores = scores.clone()
            scores[forbidden] = -torch.inf
            return int(scores.argmax())
        row = scores.detach().float().cpu().clone()
        row[forbidden] = -torch.inf
        weights = self._warpers(None, row[None]).softmax(-1)
        return int(torch.multinomial(weights[0], 1, generator=self._random))


def _warpers(sampling: Sampling) -> Any:
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    chosen: list[Any] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k:
        chosen.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1.0:
        chosen.append(TopPLogitsWarper(sampling.top_p))
    return LogitsProcessorList(chosen)


def _generator(seed: int | None) -> torch.Generator:
    import torch

    random = torch.Generator()
    if seed is None:
        random.seed()
    else:
        random.manual_seed(seed)
    return random
