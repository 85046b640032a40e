"""A range of a language model's layers that answers token by token, and the loop over a chain of them.

A stage has a prefill and a decode graph (``prefill.onnx``, ``decode.onnx``). Their results ``present_*`` are
the keys and values so far and come back as ``past_*`` in the next step; ``cross_*`` of an encoder-decoder
stay as the prompt made them. Both never leave the stage. The one other tensor is what it is given, token ids
or hidden states, and what it hands on, hidden states or the logits of the last token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mubackend.failure import invalid
from mubackend.metrics import Metrics
from mubackend.settings import Settings
from mubackend.stage.runner import Array, StageRunner, VirtualCost, open_graph, stage_weights
from muserve.weightless import load_model

_KEPT = ("present_", "cross_")


class TokenStage:
    """The layers of one stage with the caches of all sequences that it works on."""

    def __init__(self, prefill: StageRunner, decode: StageRunner) -> None:
        self._prefill = prefill
        self._decode = decode
        self._caches: dict[int, dict[str, Array]] = {}

    @property
    def sequences(self) -> tuple[int, ...]:
        """Sequences that have a cache here, oldest first."""
        return tuple(self._caches)

    def read(self, sequence: int, prompt: Array) -> Array:
        """Start ``sequence`` with its whole prompt, token ids [1, tokens] or their hidden states.

        Raises RequestError when it has begun already or ONNX Runtime refuses the prompt.
        """
        if sequence in self._caches:
            raise invalid(f"sequence {sequence} has begun already")
        return self._run(self._prefill, sequence, prompt, {})

    def step(self, sequence: int, token: Array) -> Array:
        """Go on with one token, its id [1, 1] or its hidden state [1, 1, hidden].

        Raises RequestError when the sequence has not begun or ONNX Runtime refuses the token.
        """
        if sequence not in self._caches:
            raise invalid(f"sequence {sequence} has not begun")
        return self._run(self._decode, sequence, token, self._caches[sequence])

    def forget(self, sequence: int) -> None:
        """Free the cache of a sequence, if there is one."""
        self._caches.pop(sequence, None)

    def close(self) -> None:
        """Release the graphs' runners."""
        self._prefill.close()
        self._decode.close()

    def _run(self, graph: StageRunner, sequence: int, given: Array, caches: dict[str, Array]) -> Array:
        (taken,) = (name for name in graph.inputs if name not in caches)
        results = dict(zip(graph.outputs, graph.run({taken: given, **caches}, graph.outputs), strict=True))
        (handed_on,) = (name for name in results if not name.startswith(_KEPT))
        passed = results.pop(handed_on)
        kept = {name.replace("present_", "past_"): values for name, values in results.items()}
        self._caches[sequence] = {**caches, **kept}
        return passed


def open_token_stage(
    settings: Settings,
    metrics: Metrics,
    virtual: tuple[VirtualCost, VirtualCost] | None = None,
    cuda_device: int | None = None,
) -> TokenStage:
    """The stage in the model's version directory; ``virtual``: what a prefill and a decode step cost.

    Raises InputError when a graph is missing or broken, or the weights that both share cannot be had.
    """
    files = [settings.version_dir / f"{step}.onnx" for step in ("prefill", "decode")]
    graphs = [load_model(file) for file in files]
    weights = stage_weights(graphs[0], settings)
    sessions = [
        open_graph(file, graph, weights, settings, cuda_device)
        for file, graph in zip(files, graphs, strict=True)
    ]
    costs = virtual or (None, None)
    prefill, decode = (StageRunner(s, c, metrics) for s, c in zip(sessions, costs, strict=True))
    return TokenStage(prefill, decode)


def greedy_tokens(
    stages: Sequence[TokenStage], prompt: Sequence[int], most_tokens: int, end_token: int | None = None
) -> Iterator[int]:
    """The most likely answer to ``prompt``, token by token through the chain of ``stages``.

    It ends after ``end_token`` or ``most_tokens``, and the stages forget the sequence when the caller stops.
    Raises RequestError when a stage does.
    """
    sequence = 1 + max((known for stage in stages for known in stage.sequences), default=0)
    try:
        passed: Array = np.array([prompt], np.int64)
        for stage in stages:
            passed = stage.read(sequence, passed)
        for position in range(most_tokens):
            token = int(passed[0].argmax())
            yield token
            if token == end_token or position + 1 == most_tokens:
                return
            passed = np.array([[token]], np.int64)
            for stage in stages:
                passed = stage.step(sequence, passed)
    finally:
        for stage in stages:
            stage.forget(sequence)
