"""Dynamic batching of a single-pass model: whether its tensors allow it, and what a batch costs."""

from __future__ import annotations

from itertools import accumulate, pairwise

from muplan.profile.operators import BATCH_AXIS, graph_dtype, operator_costs
from muplan.profile.symbolic import symbolic_dims
from muplan.repository.model_config import Batching
from muplan.sensitivity import stage_law
from muplan.staging import StagedModel
from muserve.errors import InputError
from muserve.gpu.parts import Part


def batching_of(staged: StagedModel) -> Batching | None:
    """The batching that the spec asks for."""
    asked = staged.spec.batching
    if asked is None:
        return None
    return Batching(max_batch_size=asked.max_batch_size, max_queue_delay_ms=asked.max_queue_delay_ms)


def check_batching(staged: StagedModel) -> None:
    """InputError when batching is asked for and a tensor that Triton carries has no leading batch axis.

    Joining requests along a free axis that all tensors share is right for a network that treats its rows
    alike; that it does cannot be seen from shapes.
    """
    if staged.spec.batching is None or staged.source.graph is None:
        return
    tensors = symbolic_dims(staged.source.graph)
    carried = dict.fromkeys(
        name for partition in staged.partitions for name in (*partition.inputs, *partition.outputs)
    )
    leading = {name: next(iter(tensors[name][1]), None) for name in carried}
    axis = next(iter(leading.values()))
    for name, first in leading.items():
        if not isinstance(first, str) or first != axis:
            raise InputError(
                f"batching: expected every tensor to begin with one free batch axis, {name} begins with "
                f"{'an unnamed axis' if first is None else first}"
            )
        if len(tensors[name][1]) == 1:
            raise InputError(f"batching: expected an axis after the batch axis, {name} has none")


def planned_dims(staged: StagedModel) -> dict[str, int]:
    """The size of each free axis that the partitions were profiled at."""
    return {BATCH_AXIS: 1, **staged.source.default_dims, **staged.spec.dims}


def planned_rows(staged: StagedModel) -> int:
    """The batch that the partitions were profiled at; for a model that ``check_batching`` let pass."""
    return planned_dims(staged)[_batch_axis(staged)]


def row_growth_ms(staged: StagedModel, part: Part) -> tuple[float, ...]:
    """For each partition, what one more row in the batch adds to a run at the top clock; modelled.

    The slope of the roofline between a batch of one and a full one.
    """
    batching = staged.spec.batching
    assert batching is not None, "the model batches"
    alone, full = (_latencies_ms(staged, part, rows) for rows in (1, batching.max_batch_size))
    return tuple(max(0.0, (b - a) / (batching.max_batch_size - 1)) for a, b in zip(alone, full, strict=True))


def _latencies_ms(staged: StagedModel, part: Part, rows: int) -> tuple[float, ...]:
    graph = staged.source.graph
    assert graph is not None, "a single-pass model has a graph"
    costs = operator_costs(graph, rows, {**planned_dims(staged), _batch_axis(staged): rows})
    bounds = (0, *accumulate(partition.operators for partition in staged.partitions))
    dtype = graph_dtype(graph)
    return tuple(stage_law(costs[low:high], part, dtype).latency_ms for low, high in pairwise(bounds))


def _batch_axis(staged: StagedModel) -> str:
    """Name of the leading axis of the model's first input, as ``dynamic_axes`` gives it."""
    assert staged.source.graph is not None, "a single-pass model has a graph"
    name = staged.partitions[0].inputs[0]
    (value,) = (value for value in staged.source.graph.graph.input if value.name == name)
    return value.type.tensor_type.shape.dim[0].dim_param or f"{name}_0"
