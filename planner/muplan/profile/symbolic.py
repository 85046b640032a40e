"""Which dims of a graph's tensors follow which free dims of its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from muplan.profile.shapes import dynamic_axes, infer_shapes
from muplan.profile.tensor_shape import TensorShape
from muserve.errors import InputError

if TYPE_CHECKING:
    import onnx

# Sizes to probe a graph at when nobody gives any. First distinct ones, then equal ones for axes that must
# agree without sharing a name.
_PROBED_SIZES = ((64, 32), (64, 0), (256, 0), (16, 0))
# A step of 128 shows through strides up to 128; a short one fits below the largest position.
_PROBED_STEPS = (128, 16)


def symbolic_dims(
    model: onnx.ModelProto, sizes: Mapping[str, int] | None = None
) -> dict[str, tuple[int, tuple[int | str | None, ...]]]:
    """Element type and dims of every tensor: int where fixed, axis name where equal to it, else None.

    Found by inferring shapes at several sizes of each dynamic axis and watching which dims follow; axes
    that only move together are moved together. ``sizes`` is one more choice that is known to fit. Raises
    InputError when none does.
    """
    axes = dynamic_axes(model)
    base, reference = _reference(model, axes, sizes)
    result: dict[str, list[int | str | None]] = {name: list(s.dims) for name, s in reference.items()}
    stubborn = []
    for axis in axes:
        if probe := _probe(model, reference, base, (axis,)):
            _mark(result, reference, probe[1], {(base[axis], probe[0][axis]): axis})
        else:
            stubborn.append(axis)
    if stubborn and (probe := _probe(model, reference, base, stubborn)):
        moves = {(base[axis], probe[0][axis]): axis for axis in reversed(stubborn)}
        _mark(result, reference, probe[1], moves)
    return {name: (reference[name].onnx_dtype, tuple(dims)) for name, dims in result.items()}


def _reference(
    model: onnx.ModelProto, axes: tuple[str, ...], sizes: Mapping[str, int] | None
) -> tuple[dict[str, int], dict[str, TensorShape]]:
    """The first choice of sizes that fits the graph, and the shapes there."""
    choices = [
        {axis: first + step * position for position, axis in enumerate(axes)}
        for first, step in _PROBED_SIZES[: None if axes else 1]
    ]
    if sizes is not None:
        choices.append({axis: sizes.get(axis, 1) for axis in axes})
    complaint = None
    for choice in choices:
        try:
            return choice, infer_shapes(model, choice)
        except InputError as error:
            complaint = complaint or error
    assert complaint is not None, "there is always a first choice"
    raise complaint


def _probe(
    model: onnx.ModelProto,
    reference: Mapping[str, TensorShape],
    base: Mapping[str, int],
    axes: Iterable[str],
) -> tuple[dict[str, int], dict[str, TensorShape]] | None:
    """Shapes with ``axes`` larger than ``base`` by the largest step that fits; None when none does."""
    for step in _PROBED_STEPS:
        grown = {**base, **{axis: base[axis] + step for axis in axes}}
        try:
            shapes = infer_shapes(model, grown)
        except InputError:
            continue
        # A size of 1 may have been squeezed away.
        if all(len(shape.dims) == len(reference[name].dims) for name, shape in shapes.items()):
            return grown, shapes
    return None


def _mark(
    dims: dict[str, list[int | str | None]],
    reference: Mapping[str, TensorShape],
    probe: Mapping[str, TensorShape],
    moves: Mapping[tuple[int, int], str],
) -> None:
    """Write the axis that made the same move, from one size to another, over every dim that moved; None
    over those that moved otherwise."""
    for name, before in reference.items():
        for position, move in enumerate(zip(before.dims, probe[name].dims, strict=True)):
            if move[0] != move[1]:
                untouched = dims[name][position] == move[0]
                dims[name][position] = moves.get(move) if untouched else None
