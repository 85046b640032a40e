"""Requests to Triton over gRPC, through NVIDIA's own client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from muplan.load.shapes import Shape
from muserve.errors import ServingError

Tensors = Mapping[str, npt.NDArray[Any]]

# Every model kind accepts 0 and 1 as an integer: a token of any vocabulary, a mask, a segment.
_INTEGER_LIMIT = 2


class ServingRequestError(ServingError):
    """Triton refused or failed one request; ``status`` names the gRPC code (``StatusCode.UNAVAILABLE``)."""

    def __init__(self, message: str, status: str | None = None) -> None:
        super().__init__(message)
        self.status = status


class TritonLoadClient:
    """The calls that a load needs, on one gRPC channel. Use inside one asyncio event loop."""

    def __init__(self, url: str) -> None:
        from tritonclient.grpc import aio

        self._client = aio.InferenceServerClient(url)

    async def close(self) -> None:
        """Close the channel; calls still running on it fail."""
        await self._client.close()

    async def version(self) -> str:
        """Version of the server that answers."""
        metadata = await self._client.get_server_metadata()
        return str(metadata.version)

    async def draw_tensors(self, model: str, shapes: Mapping[str, Shape], seed: int) -> Tensors:
        """Random tensors for one request to ``model``, of the types that Triton's metadata ask for.

        Free axes (-1) get their size from the input's shape in ``shapes``, else 1.
        """
        metadata = await self._client.get_model_metadata(model)
        rng = np.random.default_rng(seed)
        return {
            tensor.name: _random(tensor.datatype, _fill(tensor.shape, shapes.get(tensor.name)), rng)
            for tensor in metadata.inputs
        }

    async def infer(self, model: str, tensors: Tensors) -> None:
        """One request to a single-pass model; raises ServingRequestError when it fails."""
        from tritonclient.utils import InferenceServerException

        try:
            await self._client.infer(model, _infer_inputs(tensors))
        except InferenceServerException as error:
            raise ServingRequestError(str(error)) from error

    async def stream(self, model: str, prompt: str, sampling: str | None = None) -> AsyncGenerator[str]:
        """Yield the pieces of text that ``model`` generates for ``prompt``, as they arrive.

        ``sampling``: the JSON object ``sampling_parameters``. Decoupled models can only be reached by a
        stream. Each request has its own, as from independent clients; closing the generator cancels it.
        Raises ServingRequestError when Triton reports an error.
        """
        import grpc
        from tritonclient.utils import InferenceServerException

        tensors = {
            "text_input": np.array([prompt.encode("utf-8", "replace")], dtype=np.object_),
            "stream": np.array([True]),
        }
        if sampling is not None:
            tensors["sampling_parameters"] = np.array([sampling.encode()], dtype=np.object_)
        inputs = _infer_inputs(tensors)

        async def only_request() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": model, "inputs": inputs}

        try:
            # The header makes Triton end the stream with the code of an error.
            responses = self._client.stream_infer(only_request(), headers={"triton_grpc_error": "true"})
            async for result, error in responses:
                if error is not None:
                    raise ServingRequestError(str(error))
                pieces = result.as_numpy("text_output")
                if pieces is not None:
                    yield b"".join(pieces.ravel().tolist()).decode(errors="replace")
        except InferenceServerException as error:
            raise ServingRequestError(error.message(), error.status()) from error
        except grpc.aio.AioRpcError as error:
            raise ServingRequestError(error.details() or str(error), str(error.code())) from error


def _fill(wanted: Sequence[int], typical: Shape | None) -> Shape:
    if typical is None or len(typical) != len(wanted):
        typical = (1,) * len(wanted)
    return tuple(size if size > 0 else known for size, known in zip(wanted, typical, strict=True))


def _random(datatype: str, shape: Shape, rng: np.random.Generator) -> npt.NDArray[Any]:
    """Normal floats, integers in {0, 1}."""
    from tritonclient.utils import triton_to_np_dtype

    dtype = np.dtype(triton_to_np_dtype(datatype))
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind in "iub":
        return rng.integers(_INTEGER_LIMIT, size=shape).astype(dtype)
    raise ServingError(f"expected an input of numbers, got one of {datatype}")


def _infer_inputs(tensors: Tensors) -> list[Any]:
    from tritonclient.grpc import InferInput
    from tritonclient.utils import np_to_triton_dtype

    inputs = []
    for name, values in tensors.items():
        tensor = InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    return inputs
