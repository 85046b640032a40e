"""Requests as the front sends them to its own server, over gRPC: tickets with a priority, tensors without.

Triton's request priority is an unsigned 64-bit integer, lower first, over gRPC only (its HTTP generate
routes and the Python backend's own calls cannot set it). With ``priority_levels`` of 2^64 - 1 every
virtual finish time has a level of its own, save for the two ends:

* 0 means "no priority given" to Triton, so all keys move up by one;
* the two highest keys share the last level.

What a native queue cannot do, since the key is fixed when the request enters it: an alpha that follows the
backlog, promotion of requests that are overdue, highest response ratio.
Format: ``ModelInferRequest`` of
https://github.com/triton-inference-server/common/blob/r24.10/protobuf/grpc_service.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype

from mubackend.length_predictor.service import Prediction
from mubackend.priority import PRIORITY_MAX

Array = np.ndarray[Any, np.dtype[Any]]
ANSWER = "text_output"

# Where each of Triton's types goes in InferTensorContents.
_CONTENTS = {
    "BYTES": "bytes_contents",
    "BOOL": "bool_contents",
    "FP32": "fp32_contents",
    "UINT64": "uint64_contents",
}


def native_priority(key: int) -> int:
    """Triton's priority, 1 to 2^64 - 1, of a virtual finish time, 0 to 2^64 - 1; order is kept."""
    return min(key + 1, PRIORITY_MAX)


def infer_request(
    model: str, request_id: str, tensors: Mapping[str, Array], *, output: str, priority: int | None = None
) -> Any:
    """A ``ModelInferRequest`` for ``output`` of ``model``; with Triton's native ``priority`` if given.

    ``tensors`` are STRING (object arrays), BOOL, FP32 or UINT64; KeyError for another type.
    """
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    if priority is not None:
        request.parameters["priority"].uint64_param = priority
    request.outputs.add(name=output)
    for name, values in tensors.items():
        datatype = np_to_triton_dtype(values.dtype)
        tensor = request.inputs.add(name=name, datatype=datatype, shape=values.shape)
        getattr(tensor.contents, _CONTENTS[datatype]).extend(values.reshape(-1).tolist())
    return request


def advice_tensors(prediction: Prediction) -> dict[str, Array]:
    """What an engine of ours wants to know beside the client's tensors, for its metrics."""
    return {
        "predicted_tokens": np.array([prediction.predicted_tokens], np.float32),
        "priority": np.array([prediction.priority], np.uint64),
        "arrival_ms": np.array([prediction.arrival_ms], np.uint64),
    }


def answer_texts(response: Any) -> Array | None:
    """The texts of one ``ModelInferResponse``, as bytes; None for a response without outputs."""
    for place, output in enumerate(response.outputs):
        if output.name == ANSWER:
            if response.raw_output_contents:
                return _bytes_array(response.raw_output_contents[place])
            return np.array(list(output.contents.bytes_contents), np.object_)
    return None


def _bytes_array(raw: bytes) -> Array:
    """Each element of a raw BYTES tensor follows its length, four bytes, little endian."""
    texts: list[bytes] = []
    at = 0
    while at < len(raw):
        start = at + 4
        at = start + int.from_bytes(raw[at:start], "little")
        texts.append(raw[start:at])
    return np.array(texts, np.object_)
