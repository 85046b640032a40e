"""Where the data of an ONNX initialiser lies: in the graph file, or in a file beside it.

ONNX keeps big data outside of the graph (``TensorProto.external_data``, "External Data" in ONNX's
documentation), and protobuf allows one message no more than 2 GiB. Data beside the graph is therefore
referred to and never read into a message, except for small constants: shapes, axes and scales are part of
the graph's meaning.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, BinaryIO

from muserve.errors import InputError

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message

SMALL_BYTES = 1024
"""Constants up to this size travel inside the graph."""

_BASE_DIRECTORY = "basepath"  # the key that ONNX's own helper uses in memory; no file carries it
_PAGE_BYTES = 4096
_COPIED_BYTES = 2**22
_PACKED_BITS = {"FLOAT4E2M1": 4, "INT2": 2, "INT4": 4, "UINT2": 2, "UINT4": 4}


def dense_bytes(onnx_dtype: int, dims: Iterable[int]) -> int:
    """Bytes of a tensor; elements narrower than a byte are packed, and a string counts as 8.

    Raises InputError for an element type that ONNX does not know.
    """
    from onnx import TensorProto, helper

    try:
        name = TensorProto.DataType.Name(onnx_dtype)
        bits = _PACKED_BITS.get(name) or helper.tensor_dtype_to_np_dtype(onnx_dtype).itemsize * 8
    except (KeyError, ValueError) as error:
        raise InputError(f"expected an element type that ONNX knows, got {onnx_dtype}") from error
    return -(-math.prod(dims) * int(bits) // 8)


def is_beside(tensor: onnx.TensorProto) -> bool:
    """Whether the data of ``tensor`` lies in a file that ``refer_to_data`` has found."""
    return _BASE_DIRECTORY in _entries(tensor)


def refer_to_data(tensor: onnx.TensorProto, directory: Path) -> None:
    """Find the external data of ``tensor`` in ``directory``; small data is read into it, big is not.

    Raises InputError when the file is missing, too short, or outside of ``directory``.
    """
    entries = _entries(tensor)
    location = entries.get("location", "")
    if not location or PurePath(location).is_absolute() or ".." in PurePath(location).parts:
        raise InputError(f"expected its data in a file beside the graph, got {location!r}")
    size_bytes = dense_bytes(tensor.data_type, tensor.dims)
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", size_bytes))
        available = (directory / location).stat().st_size - offset
        data = _read(directory / location, offset, size_bytes) if size_bytes <= SMALL_BYTES else None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"expected its data in {location}: {reason}") from error
    if offset < 0 or length != size_bytes or available < size_bytes:
        raise InputError(
            f"expected {size_bytes} bytes of data in {location}, got {min(length, max(available, 0))}"
        )
    if data is not None:
        tensor.ClearField("data_location")
        del tensor.external_data[:]
        tensor.raw_data = data
        return
    where = {"location": location, "offset": offset, "length": size_bytes, _BASE_DIRECTORY: directory}
    tensor.CopyFrom(_reference(tensor, where))


def base_directory(tensors: Iterable[onnx.TensorProto]) -> Path | None:
    """The directory that the data of ``tensors`` lies in; None when all of it is in the graph."""
    return next((Path(_entries(t)[_BASE_DIRECTORY]) for t in tensors if is_beside(t)), None)


def without_base_directory(tensor: onnx.TensorProto) -> None:
    """Make the reference of ``tensor`` one that may be stored: relative to the graph's own directory."""
    kept = [entry for entry in tensor.external_data if entry.key != _BASE_DIRECTORY]
    del tensor.external_data[:]
    tensor.external_data.extend(kept)


def move_data(tensor: onnx.TensorProto, data: BinaryIO, location: str) -> onnx.TensorProto:
    """Append the data of ``tensor``, inline or beside its graph, to ``data``: a reference to it there.

    It starts on a page, so that a runtime can map it, and is copied a few megabytes at a time. Raises
    InputError when the file beside the graph is gone or has become shorter.
    """
    offset = -(-data.tell() // _PAGE_BYTES) * _PAGE_BYTES
    data.seek(offset)
    if is_beside(tensor):
        _copy_from_beside(tensor, data)
    else:
        data.write(tensor.raw_data)
    return _reference(tensor, {"location": location, "offset": offset, "length": data.tell() - offset})


def without_initialisers(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of everything but the initialisers, however big they are."""
    copy = type(model)()
    _copy_fields(model, copy, but="graph")
    _copy_fields(model.graph, copy.graph, but="initializer")
    return copy


def light_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose initialisers above a kilobyte are inputs: what checks and shape inference need."""
    from onnx import helper

    light = without_initialisers(model)
    inputs = {value.name for value in light.graph.input}
    for tensor in model.graph.initializer:
        if not tensor.external_data and dense_bytes(tensor.data_type, tensor.dims) <= SMALL_BYTES:
            light.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            light.graph.input.append(value)
    return light


def _copy_from_beside(tensor: onnx.TensorProto, data: BinaryIO) -> None:
    entries = _entries(tensor)
    left = int(entries["length"])
    try:
        with Path(entries[_BASE_DIRECTORY], entries["location"]).open("rb") as source:
            source.seek(int(entries["offset"]))
            while left and (piece := source.read(min(left, _COPIED_BYTES))):
                data.write(piece)
                left -= len(piece)
    except FileNotFoundError as error:
        raise InputError(f"{error.filename}: the data of {tensor.name} is gone") from error
    if left:
        raise InputError(f"{entries['location']}: the data of {tensor.name} has become shorter")


def _reference(tensor: onnx.TensorProto, entries: Mapping[str, object]) -> onnx.TensorProto:
    """``tensor`` without its data, which lies where ``entries`` say."""
    from onnx import TensorProto

    reference = TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
    reference.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        reference.external_data.add(key=key, value=str(value))
    return reference


def _copy_fields(source: Message, target: Message, but: str) -> None:
    for field, value in source.ListFields():
        if field.name == but:
            continue
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        else:
            setattr(target, field.name, value)


def _entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _read(file: Path, offset: int, size_bytes: int) -> bytes:
    with file.open("rb") as source:
        source.seek(offset)
        return source.read(size_bytes)
