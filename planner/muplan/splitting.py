"""Cut an ONNX model into partitions whose chain computes what the whole computes.

Each partition is a complete ONNX model. Weights go with the operators that read them; an initialiser read
on both sides of a cut is in both partitions. A partition's inputs are the public inputs it needs itself
and the tensors made by earlier partitions; its outputs are the tensors that later partitions need and the
public outputs it makes. Running the partitions in order, each on what is known by name so far, therefore
gives every public output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from muplan.profile.structure import Structure, structure
from muplan.profile.symbolic import symbolic_dims
from muserve.tensor_data import SMALL_BYTES, dense_bytes, is_beside, move_data, without_initialisers
from muserve.weights import LARGEST_PROTO_BYTES

if TYPE_CHECKING:
    import onnx


def split(
    model: onnx.ModelProto, cuts: Sequence[int], sizes: Mapping[str, int] | None = None
) -> tuple[onnx.ModelProto, ...]:
    """The ``len(cuts) + 1`` partitions of ``model``; a cut is the position of the operator it follows.

    ``sizes`` are sizes of the dynamic axes that are known to fit, for a graph that does not take any.

    Weightless initialisers stay weightless and keep their names. Public inputs and outputs keep their
    declared types; tensors between partitions get the inferred ones. Raises ValueError when cuts are not
    ascending positions or leave a partition without operators, InputError when a shape cannot be inferred.
    """
    if not cuts:
        whole = type(model)()
        whole.CopyFrom(model)
        return (whole,)
    graph = structure(model)
    bounds = [-1, *cuts, len(graph.nodes) - 1]
    stages = [
        [position for position in range(low + 1, high + 1) if position in graph.owned]
        for low, high in pairwise(bounds)
    ]
    if any(not stage for stage in stages):
        raise ValueError(f"cuts {tuple(cuts)} leave a partition of {model.graph.name} without operators")
    values = _value_infos(model, sizes)
    outputs = _stage_outputs(graph, stages)
    return tuple(
        _partition(model, graph, values, index, stage, outputs[index]) for index, stage in enumerate(stages)
    )


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all initialisers, with or without data."""
    return sum(dense_bytes(tensor.data_type, tensor.dims) for tensor in model.graph.initializer)


def save_model(model: onnx.ModelProto, file: Path, largest_bytes: int = LARGEST_PROTO_BYTES) -> None:
    """Write ``model`` to ``file``; big data goes to ``<file>.data`` beside it.

    That is all data that lies beside the graph already, and everything above a kilobyte when the data
    inside comes to ``largest_bytes``. It is copied piece by piece. The bytes depend only on the model,
    which is left as it is.
    """
    crowded = sum(len(tensor.raw_data) for tensor in model.graph.initializer) >= largest_bytes
    moved = {
        tensor.name
        for tensor in model.graph.initializer
        if is_beside(tensor) or (crowded and len(tensor.raw_data) > SMALL_BYTES)
    }
    stored = without_initialisers(model)
    if not moved:
        stored.graph.initializer.extend(model.graph.initializer)
    else:
        with file.with_name(file.name + ".data").open("wb") as data:
            stored.graph.initializer.extend(
                move_data(tensor, data, file.name + ".data") if tensor.name in moved else tensor
                for tensor in model.graph.initializer
            )
    file.write_bytes(stored.SerializeToString(deterministic=True))


def _stage_outputs(graph: Structure, stages: Sequence[Sequence[int]]) -> list[tuple[str, ...]]:
    """What each stage hands on: tensors later stages read, then the public outputs it makes."""
    home = {position: index for index, stage in enumerate(stages) for position in stage}
    handed: list[dict[str, None]] = [{} for _ in stages]
    wanted: set[str] = set()
    for index, stage in enumerate(stages):
        for position in stage:
            for name in graph.needs(position):
                maker = home.get(graph.producers.get(name, -1), index)
                if maker != index:
                    wanted.add(name)
    for position in sorted(home):
        for name in graph.nodes[position].output:
            if name in wanted:
                handed[home[position]][name] = None
    for name in graph.outputs:  # what no owned operator makes is left to the last stage
        handed[home.get(graph.producers.get(name, -1), len(stages) - 1)][name] = None
    return [tuple(names) for names in handed]


def _partition(
    model: onnx.ModelProto,
    graph: Structure,
    values: dict[str, onnx.ValueInfoProto],
    index: int,
    stage: Sequence[int],
    outputs: tuple[str, ...],
) -> onnx.ModelProto:
    """One partition: its own operators, the repeated ones they need, and their weights."""
    positions = set(stage)
    pending = [name for p in stage for name in graph.nodes[p].input if name] + list(outputs)
    external: set[str] = set()
    while pending:
        name = pending.pop()
        source = graph.producers.get(name)
        if source is None or (source in graph.owned and source not in positions):
            external.add(name)
        elif source not in positions:
            positions.add(source)
            pending.extend(name for name in graph.nodes[source].input if name)
    made_before = [n for node in graph.nodes for n in node.output if n in external]
    part = type(model)(ir_version=model.ir_version, producer_name=model.producer_name)
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.metadata_props.extend(model.metadata_props)
    part.graph.name = f"{model.graph.name}_stage{index}"
    part.graph.node.extend(graph.nodes[position] for position in sorted(positions))
    part.graph.initializer.extend(t for name, t in graph.constants.items() if name in external)
    part.graph.input.extend(values[n] for n in (*graph.inputs, *made_before) if n in external)
    part.graph.output.extend(values[name] for name in outputs)
    return part


def _value_infos(model: onnx.ModelProto, sizes: Mapping[str, int] | None) -> dict[str, onnx.ValueInfoProto]:
    """Declared types of public tensors, inferred ones of all others."""
    from onnx import helper

    values = {
        name: helper.make_tensor_value_info(name, dtype, list(dims))
        for name, (dtype, dims) in symbolic_dims(model, sizes).items()
    }
    values.update((value.name, value) for value in [*model.graph.input, *model.graph.output])
    return values
