"""The network that is fine-tuned: a pretrained encoder under a score of the answer's length."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from muplan.predictor.encoder_source import Pretrained
from muserve.errors import InputError

Floats = NDArray[np.float64]
CLASS_PERCENTILES = (25, 50, 75, 99)
"""Where the lengths are cut into the classes of the auxiliary task."""


def build_network(source: Pretrained, log_tokens: Floats) -> Any:
    """The pretrained encoder under a mean over its tokens and a linear head, starting at the mean."""
    torch = require_torch()

    class Network(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.encoder = source.encoder()
            width = self.encoder.config.hidden_size
            self.dropout = torch.nn.Dropout(0.1)
            self.score = torch.nn.Linear(width, 1)
            self.classes = torch.nn.Linear(width, len(CLASS_PERCENTILES) + 1)
            for head in (self.score, self.classes):
                torch.nn.init.normal_(head.weight, std=0.02)
                torch.nn.init.zeros_(head.bias)
            self.register_buffer("mean", torch.tensor(float(log_tokens.mean())))
            self.register_buffer("scale", torch.tensor(float(log_tokens.std()) or 1.0))

        def pooled(self, ids: Any, mask: Any) -> Any:
            states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            kept = mask.unsqueeze(-1).to(states.dtype)
            return (states * kept).sum(1) / kept.sum(1)

        def score_and_classes(self, ids: Any, mask: Any) -> tuple[Any, Any]:
            pooled = self.dropout(self.pooled(ids, mask))
            return self.score(pooled).squeeze(-1), self.classes(pooled)

        def forward(self, ids: Any, mask: Any) -> Any:
            score = self.score(self.pooled(ids, mask)).squeeze(-1)
            return score.float() * self.scale + self.mean

    return Network()


def require_torch() -> Any:
    """The torch module. Raises InputError when it is missing, or transformers or SciPy."""
    try:
        import scipy.stats  # noqa: F401
        import torch
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(f'training an encoder needs {error.name}: pip install "muserve[train]"') from error
    return torch
