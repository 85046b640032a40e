"""Device memory that a partition of a graph takes, for every partition there could be. Pure.

A partition holds its process, the weights its operators read, and what is live while one operator runs.
An initialiser read on both sides of a cut is in both partitions, so weights do not simply add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from muplan.profile.operators import OperatorCost
from muplan.profile.structure import structure
from muserve.tensor_data import dense_bytes

if TYPE_CHECKING:
    import onnx

# Device memory that a process takes before it loads a model: CUDA context, cuBLAS and cuDNN handles.
CONTEXT_BYTES = 450_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightUse:
    """An operator's first or repeated reading of an initialiser; ``last_read`` is -1 for the first."""

    position: int
    last_read: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """What partitions of one graph need: ``live_bytes`` of each operator, and who reads which weights."""

    live_bytes: tuple[int, ...]
    uses: tuple[WeightUse, ...]

    def spans(self, ends: NDArray[np.int64]) -> NDArray[np.int64]:
        """``[i, j]``: bytes of the partition after operator ``ends[i]`` up to ``ends[j]``; 0 unless i < j.

        ``ends`` ascends from -1. Takes time and memory in the square of its length.
        """
        live = np.array(self.live_bytes, dtype=np.int64)
        between = np.maximum.reduceat(live, ends[:-1] + 1)
        rows = np.where(np.tri(len(ends), k=-1, dtype=bool).T[:, 1:], between, 0)
        most_live = np.maximum.accumulate(rows, axis=1)
        # A use counts in (a, b] when it is the first there: last_read <= a < position <= b.
        steps = np.zeros((len(ends) + 1, len(ends)), dtype=np.int64)
        position, last_read, size = (
            np.array([getattr(use, name) for use in self.uses], dtype=np.int64)
            for name in ("position", "last_read", "size_bytes")
        )
        first_end, first_start = np.searchsorted(ends, position), np.searchsorted(ends, last_read)
        np.add.at(steps, (first_start, first_end), size)
        np.add.at(steps, (first_end, first_end), -size)
        weights = steps.cumsum(axis=0).cumsum(axis=1)[: len(ends)]
        needed = weights
        needed[:, 1:] += most_live
        needed += CONTEXT_BYTES
        needed[np.tril_indices(len(ends))] = 0
        return needed


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimit:
    """What one partition may take: the ``limit_bytes`` of the GPU part called ``part``."""

    memory: StageMemory
    limit_bytes: int
    part: str


def stage_memory(model: onnx.ModelProto, costs: Sequence[OperatorCost]) -> StageMemory:
    """The memory of the partitions of ``model``, whose operators cost ``costs``."""
    graph = structure(model)
    last_read: dict[str, int] = {}
    uses = []
    for position in sorted(graph.owned):
        for name in dict.fromkeys(graph.needs(position)):
            if name not in graph.constants:
                continue
            size = dense_bytes(graph.constants[name].data_type, graph.constants[name].dims)
            uses.append(WeightUse(position=position, last_read=last_read.get(name, -1), size_bytes=size))
            last_read[name] = position
    return StageMemory(live_bytes=tuple(live_bytes(cost) for cost in costs), uses=tuple(uses))


def live_bytes(cost: OperatorCost) -> int:
    """What is live while an operator runs: what crosses it, and what it reads and writes itself."""
    return cost.cut_bytes + cost.bytes_read - cost.weight_bytes + cost.bytes_written


def memory_bytes(weights: int, costs: Iterable[OperatorCost]) -> int:
    """Memory of one partition with ``weights`` bytes of initialisers."""
    return CONTEXT_BYTES + weights + max(live_bytes(cost) for cost in costs)
