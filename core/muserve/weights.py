"""The data of weightless graphs (``muserve.weightless``): from a seed or a file, into ONNX Runtime.

From a seed every tensor is drawn from its own random stream, seeded by (seed, initialiser name): values
depend on nothing else, so the partitions of a graph get exactly the weights of the whole. They are stable
for one NumPy release line, not across all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from muserve.errors import InputError
from muserve.tensor_data import base_directory, without_base_directory
from muserve.weightless import (
    TRANSPOSED_SUFFIX,
    initialiser_dtype,
    missing_weights,
    stand_in_scale,
)

if TYPE_CHECKING:
    import onnx
    import onnxruntime

Array = np.ndarray[Any, np.dtype[Any]]

LARGEST_PROTO_BYTES = 2**31 - 2**20
"""Protobuf's limit for one message, less room for the operators."""

_DATA_DIRECTORY = "session.model_external_initializers_file_folder_path"


def fill_weights(model: onnx.ModelProto, seed: int) -> dict[str, Array]:
    """Data for every missing initialiser of ``model``, drawn from (``seed``, initialiser name)."""
    return {tensor.name: _draw(seed, tensor) for tensor in missing_weights(model)}


def read_weights(model: onnx.ModelProto, file: Path) -> dict[str, Array]:
    """Data for every missing initialiser of ``model`` from a ``.safetensors`` or ``.npz`` file, or from
    all ``.safetensors`` files of a directory.

    Keys are initialiser names; for ``NAME.transposed`` the file may hold ``NAME``, whose last two axes are
    then swapped. A ``*`` in a name stands for the index along the first axis: one tensor each in the file.
    The first part of a name may be there in one and missing in the other, since checkpoints of a network
    without its head leave the network's own name out. Floating-point data is converted to the graph's dtype.
    Raises InputError when the file is missing, unreadable or of another format, and when a tensor is absent
    or of another shape.
    """
    with _opened(file) as readers:
        return {t.name: _read_tensor(readers, t, file) for t in missing_weights(model)}


def open_session(
    model: onnx.ModelProto, weights: Mapping[str, Array], threads: int, cuda_device: int | None = None
) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session of ``model`` with ``weights`` for its missing initialisers.

    It runs on the CUDA device of index ``cuda_device``, or on the CPU, where ``threads`` bounds the
    intra-operator pool. The arrays may be dropped afterwards. Raises InputError when a missing
    initialiser has no array, or when this ONNX Runtime has no CUDA.
    """
    import onnxruntime

    providers: list[Any] = ["CPUExecutionProvider"]
    if cuda_device is not None:
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise InputError(
                f"graph {model.graph.name}: CUDA device {cuda_device} is asked for, but this ONNX Runtime "
                "has no CUDA: expected the package onnxruntime-gpu and a working driver"
            )
        # What CUDA lacks a kernel for still runs on the CPU, as ONNX Runtime's users expect.
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": cuda_device}))
    names = [tensor.name for tensor in missing_weights(model)]
    absent = [name for name in names if name not in weights]
    if absent:
        raise InputError(f"graph {model.graph.name}: no data for initialiser {absent[0]}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(weights[n])) for n in names]
    options.add_external_initializers(names, values)
    return onnxruntime.InferenceSession(
        _storable(model, options).SerializeToString(), sess_options=options, providers=providers
    )


def _storable(model: onnx.ModelProto, options: onnxruntime.SessionOptions) -> onnx.ModelProto:
    """``model`` as ONNX Runtime reads it; it maps data beside the graph from the directory it is told."""
    directory = base_directory(model.graph.initializer)
    if directory is None:
        return model
    options.add_session_config_entry(_DATA_DIRECTORY, str(directory))
    stored = type(model)()
    stored.CopyFrom(model)
    for tensor in stored.graph.initializer:
        without_base_directory(tensor)
    return stored


def embed_weights(model: onnx.ModelProto, weights: Mapping[str, Array]) -> onnx.ModelProto:
    """A copy of ``model`` with the arrays of ``weights`` as the data of its missing initialisers.

    KeyError when a missing initialiser has no array.
    """
    from onnx import numpy_helper

    whole = type(model)()
    whole.CopyFrom(model)
    for tensor in missing_weights(whole):
        tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    return whole


def _draw(seed: int, tensor: onnx.TensorProto) -> Array:
    """The data of one weightless initialiser; see the module docstring."""
    mean, deviation = stand_in_scale(tensor)
    if deviation == 0:
        return np.full(tuple(tensor.dims), mean, initialiser_dtype(tensor))
    digest = hashlib.sha256(f"{seed}:{tensor.name}".encode()).digest()
    random = np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "little")))
    values = random.standard_normal(tuple(tensor.dims), np.float32)
    values *= np.float32(deviation)
    values += np.float32(mean)
    return values.astype(initialiser_dtype(tensor), copy=False)


@contextmanager
def _opened(file: Path) -> Iterator[Mapping[str, Callable[[], Array]]]:
    """A reader for each tensor in a weights file, or in all of a directory."""
    files = sorted(file.glob("*.safetensors")) if file.is_dir() else [file]
    if not files or not all(part.is_file() for part in files):
        raise InputError(f"{file}: no such weights file")
    readers: dict[str, Callable[[], Array]] = {}
    with ExitStack() as stack:
        for part in files:
            names, read = _open_one(part, stack)
            readers.update((name, partial(read, name)) for name in names)
        yield {_without_root(name): reader for name, reader in readers.items()} | readers


def _without_root(name: str) -> str:
    """``name`` without its first part, where that leaves a module and a tensor's name."""
    rest = name.partition(".")[2]
    return rest if "." in rest else name


def _open_one(file: Path, stack: ExitStack) -> tuple[Iterable[str], Callable[[str], Array]]:
    try:
        if file.suffix == ".npz":
            archive = stack.enter_context(np.load(file, allow_pickle=False))
            return archive.files, archive.__getitem__
        if file.suffix == ".safetensors":
            from safetensors import safe_open

            handle = stack.enter_context(safe_open(file, framework="numpy"))
            return handle.keys(), handle.get_tensor
    except ModuleNotFoundError as error:
        raise InputError(f"{file}: reading it needs the safetensors package") from error
    except Exception as error:  # each format has its own family of errors for a bad file
        raise InputError(f"{file}: not a valid {file.suffix} weights file: {error}") from error
    raise InputError(f"{file}: expected a .safetensors or .npz weights file")


def _read_tensor(readers: Mapping[str, Callable[[], Array]], tensor: onnx.TensorProto, file: Path) -> Array:
    """One tensor of a weights file in the graph's dtype, stacked and transposed where its name says so."""
    if "*" in tensor.name:
        names = [tensor.name.replace("*", str(index)) for index in range(tensor.dims[0])]
        dims = tuple(tensor.dims[1:])
        values = np.stack([_read_one(readers, name, dims, file) for name in names])
    else:
        values = _read_one(readers, tensor.name, tuple(tensor.dims), file)
    return np.ascontiguousarray(values, dtype=initialiser_dtype(tensor))


def _read_one(
    readers: Mapping[str, Callable[[], Array]], name: str, dims: tuple[int, ...], file: Path
) -> Array:
    reader, turned = readers.get(name) or readers.get(_without_root(name)), False
    if reader is None and name.endswith(TRANSPOSED_SUFFIX):
        name, turned = name.removesuffix(TRANSPOSED_SUFFIX), True
        reader = readers.get(name) or readers.get(_without_root(name))
    if reader is None:
        raise InputError(f"{file}: tensor {name} is missing")
    try:
        values = np.asarray(reader())
    except Exception as error:  # truncated member, or a dtype that NumPy lacks
        raise InputError(f"{file}: tensor {name} cannot be read: {error}") from error
    expected = (*dims[:-2], *dims[:-3:-1]) if turned else dims
    if values.shape != expected:
        raise InputError(f"{file}: tensor {name}: expected shape {expected}, got {values.shape}")
    return np.swapaxes(values, -1, -2) if turned else values
