"""Opening a small ONNX graph for one prompt at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from muserve.errors import InputError


def open_one_thread_session(graph: bytes, path: Path) -> Any:
    """An ONNX Runtime session of ``graph`` on one thread: a prompt is too little work to share.

    Raises InputError, naming ``path``, when ONNX Runtime is missing or cannot open the graph.
    """
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as refusals
    except ModuleNotFoundError as error:
        raise InputError('the length predictor needs ONNX Runtime: pip install "muserve[serve]"') from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except (
        refusals.Fail,
        refusals.InvalidProtobuf,
        refusals.InvalidGraph,
        refusals.InvalidArgument,
    ) as error:
        raise InputError(f"{path}: not an ONNX model that ONNX Runtime can open: {error}") from error
