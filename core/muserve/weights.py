"""The data of weightless graphs (``muserve.weightless``): from a seed or a file, into ONNX Runtime.

From a seed every tensor is drawn from its own random stream, seeded by (seed, initialiser name): values
depend on nothing else, so the partitions of a graph get exactly the weights of the whole. They are stable
for one NumPy release line, not across all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from muserve.errors import InputError
from muserve.weightless import (
    TRANSPOSED_SUFFIX,
    initialiser_dtype,
    missing_weights,
    stand_in_scale,
    strip_weights,
)

if TYPE_CHECKING:
    import onnx
    import onnxruntime

Array = np.ndarray[Any, np.dtype[Any]]

LARGEST_PROTO_BYTES = 2**31 - 2**20
"""Protobuf's limit for one message, less room for the operators."""

_LARGEST_KEPT_BYTES = 1024


def fill_weights(model: onnx.ModelProto, seed: int) -> dict[str, Array]:
    """Data for every missing initialiser of ``model``, drawn from (``seed``, initialiser name)."""
    return {tensor.name: _draw(seed, tensor) for tensor in missing_weights(model)}


def read_weights(model: onnx.ModelProto, file: Path) -> dict[str, Array]:
    """Data for every missing initialiser of ``model`` from a ``.safetensors`` or ``.npz`` file.

    Keys are initialiser names; for ``NAME.transposed`` the file may hold ``NAME``, which is then
    transposed. Floating-point data is converted to the graph's dtype. Raises InputError when the file
    is missing, unreadable or of another format, and when a tensor is absent or of another shape.
    """
    with _opened(file) as (names, read):
        return {t.name: _read_tensor(names, read, t, file) for t in missing_weights(model)}


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
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST_PROTO_BYTES:
        model, weights = _detach_data(model, weights)
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
    return onnxruntime.InferenceSession(model.SerializeToString(), sess_options=options, providers=providers)


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


def _detach_data(
    model: onnx.ModelProto, weights: Mapping[str, Array]
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A model too big for one message as a weightless one and all of its data."""
    from onnx import numpy_helper

    light = strip_weights(model, _LARGEST_KEPT_BYTES)
    hollow = {tensor.name for tensor in missing_weights(light)}
    own = {
        t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name in hollow - set(weights)
    }
    return light, {**weights, **own}


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
def _opened(file: Path) -> Iterator[tuple[frozenset[str], Callable[[str], Array]]]:
    """The tensor names in a weights file and a function that reads one of them."""
    if not file.is_file():
        raise InputError(f"{file}: no such weights file")
    with ExitStack() as stack:
        try:
            if file.suffix == ".npz":
                archive = stack.enter_context(np.load(file, allow_pickle=False))
                names, read = archive.files, archive.__getitem__
            elif file.suffix == ".safetensors":
                from safetensors import safe_open

                handle = stack.enter_context(safe_open(file, framework="numpy"))
                names, read = handle.keys(), handle.get_tensor
            else:
                raise InputError(f"{file}: expected a .safetensors or .npz weights file")
        except ModuleNotFoundError as error:
            raise InputError(f"{file}: reading it needs the safetensors package") from error
        except InputError:
            raise
        except Exception as error:  # each format has its own family of errors for a bad file
            raise InputError(f"{file}: not a valid {file.suffix} weights file: {error}") from error
        yield frozenset(names), read


def _read_tensor(
    names: frozenset[str], read: Callable[[str], Array], tensor: onnx.TensorProto, file: Path
) -> Array:
    """One tensor of a weights file in the graph's dtype, transposed where its name says so."""
    wanted, turned = tensor.name, False
    if wanted not in names and wanted.endswith(TRANSPOSED_SUFFIX):
        wanted, turned = wanted.removesuffix(TRANSPOSED_SUFFIX), True
    if wanted not in names:
        raise InputError(f"{file}: tensor {wanted} is missing")
    try:
        values = np.asarray(read(wanted))
    except Exception as error:  # truncated member, or a dtype that NumPy lacks
        raise InputError(f"{file}: tensor {wanted} cannot be read: {error}") from error
    values = values.T if turned else values
    if values.shape != tuple(tensor.dims):
        shape = values.T.shape if turned else values.shape
        expected = tuple(tensor.dims)[::-1] if turned else tuple(tensor.dims)
        raise InputError(f"{file}: tensor {wanted}: expected shape {expected}, got {shape}")
    return np.ascontiguousarray(values, dtype=initialiser_dtype(tensor))
