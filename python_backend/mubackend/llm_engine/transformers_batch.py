"""Key-value caches of several sequences as one batch that sequences join and leave between two steps.

The rows of the batch end together: shorter sequences are padded on the left, and the attention mask hides
the padding. Sequences keep their own positions, so what a row generates does not depend on the others,
up to the rounding of the larger matrix products.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class CausalBatch:
    """A batch over ``model``, a causal language model of transformers whose cache is a ``DynamicCache``.

    All results are scores of the next token, [rows, vocabulary], in the order of joining.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        accepted = inspect.signature(model.forward).parameters
        # transformers 5.24 has renamed it.
        self._cache_argument = "cache" if "cache" in accepted else "past_key_values"
        self._takes_positions = "position_ids" in accepted
        self._last_only: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self.cache: Any = None  # keys and values of all rows
        self._mask: Any = None  # [rows, columns], 1 where a token is, 0 where padding

    @property
    def rows(self) -> int:
        """How many sequences there are."""
        return 0 if self._mask is None else len(self._mask)

    def join(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read the token ids of new sequences, none of them empty; their rows come after the present ones."""
        import torch

        columns = max(map(len, prompts))
        padding = [columns - len(prompt) for prompt in prompts]
        device = self._model.device
        tokens = [[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)]
        mask = [[0] * pad + [1] * (columns - pad) for pad in padding]
        new_mask = torch.tensor(mask, device=device)
        positions = (new_mask.cumsum(-1) - 1).clamp(min=0)
        cache = _empty_cache()
        scores = self._forward(cache, torch.tensor(tokens, device=device), new_mask, positions)
        if self._mask is None:
            self.cache, self._mask = cache, new_mask
        else:
            columns = max(self._mask.shape[1], new_mask.shape[1])
            self.cache = _rebuilt(
                torch.cat((_widened(old, columns), _widened(new, columns)))
                for old, new in zip(_tensors(self.cache), _tensors(cache), strict=True)
            )
            masks = [torch.nn.functional.pad(m, (columns - m.shape[1], 0)) for m in (self._mask, new_mask)]
            self._mask = torch.cat(masks)
        return scores

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token of every sequence."""
        import torch

        positions = self._mask.sum(-1, keepdim=True)
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        column = torch.tensor(tokens, device=self._model.device)[:, None]
        return self._forward(self.cache, column, self._mask, positions)

    def keep(self, rows: Sequence[int]) -> None:
        """Let all sequences but ``rows`` leave, and the columns that only they needed."""
        import torch

        if not rows:
            self.clear()
        elif len(rows) < self.rows:
            index = torch.tensor(rows, device=self._model.device)
            mask = self._mask[index]
            first = int(mask.any(0).int().argmax())
            self._mask = mask[:, first:]
            self.cache = _rebuilt(tensor[index, :, first:].contiguous() for tensor in _tensors(self.cache))

    def clear(self) -> None:
        """Let all sequences leave."""
        self.cache = self._mask = None

    def _forward(self, cache: Any, tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Scores after ``tokens``, which the model adds to ``cache``."""
        import torch

        options = {self._cache_argument: cache, **self._last_only}
        if self._takes_positions:
            options["position_ids"] = positions
        with torch.inference_mode():
            output = self._model(input_ids=tokens, attention_mask=mask, use_cache=True, **options)
        scores: Tensor = output.logits[:, -1]
        return scores


def is_batchable(cache: Any) -> bool:
    """Whether a cache is keys and values by position and no more: no recurrent state, no window."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    layers = cache.layers if isinstance(cache, DynamicCache) else []
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _empty_cache() -> Any:
    """Without the model's configuration all layers keep everything; a sliding window is in the mask then."""
    from transformers import DynamicCache

    return DynamicCache()


def _tensors(cache: Any) -> list[Tensor]:
    """Keys and values of each layer, [rows, heads, columns, width] each."""
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def _rebuilt(tensors: Iterable[Tensor]) -> Any:
    cache, rest = _empty_cache(), iter(tensors)
    for layer, (keys, values) in enumerate(zip(rest, rest, strict=True)):
        cache.update(keys, values, layer)
    return cache


def _widened(tensor: Tensor, columns: int) -> Tensor:
    from torch.nn.functional import pad

    padded: Tensor = pad(tensor, (0, 0, columns - tensor.shape[2], 0))
    return padded
