"""An ONNX file -> the graph that is planned, checked and in normal form.

Every reason why a file cannot be planned is said here. Data beside the graph stays there: it is looked
for, not read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muplan.normal_form import (
    complete_outputs,
    free_negative_dims,
    inline_functions,
    is_complete,
    operator_name,
    plain_initialisers,
    sort_operators,
)
from muplan.profile.structure import in_onnx_domain, structure
from muserve.errors import InputError, one_line
from muserve.tensor_data import dense_bytes, light_copy
from muserve.weightless import parse_model, refer_to_weights

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message

_SEQUENCE_OPERATORS = frozenset(
    {
        *("ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement", "SequenceAt"),
        *("SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength"),
        *("SequenceMap", "SplitToSequence"),
    }
)
_MOST_DIMS = 2**15


def read_graph(file: Path) -> onnx.ModelProto:
    """The graph in ``file``, ready to be profiled, cut and served.

    Raises InputError, one sentence naming the file and the operator or tensor, for a file that is no
    valid ONNX model and for a valid one that cannot be planned.
    """
    model = parse_model(file)
    try:
        _check_text(model)
        model.graph.name = model.graph.name or file.stem
        _refuse(_unplannable(model))
        sort_operators(model.graph)
        _check(model)
        model = inline_functions(model)
        plain_initialisers(model)
        free_negative_dims(model.graph)
        _refuse(_misfits(model))
        refer_to_weights(model, file)
        complete_outputs(model)
        _refuse(_unservable(model))
    except InputError as error:
        raise InputError(f"{file}: {str(error).removeprefix(f'{file}: ')}") from error
    return model


def _check_text(message: Message) -> None:
    """InputError for text that is not UTF-8: protobuf reads it, and fails when somebody uses it."""
    if message.DESCRIPTOR.name == "TensorProto":  # not through all fields, for one of them is big
        parts: list[Any] = [message.name, *message.external_data]  # type: ignore[attr-defined]
    else:
        fields = [(field, value) for field, value in message.ListFields() if field.type != field.TYPE_BYTES]
        parts = [part for _, value in fields for part in (value if hasattr(value, "extend") else (value,))]
    for part in parts:
        if isinstance(part, bytes):
            raise InputError(f"expected text in UTF-8, got {part!r:.60}")
        if not isinstance(part, str | int | float):
            _check_text(part)


def _refuse(complaints: Iterator[str]) -> None:
    complaint = next(complaints, None)
    if complaint:
        raise InputError(complaint)


def _unplannable(model: onnx.ModelProto) -> Iterator[str]:
    """What keeps a graph from being planned, whatever else is right or wrong with it."""
    from onnx import defs, helper

    graph = model.graph
    if not graph.node or not graph.output:
        yield "expected a graph with operators and outputs"
    newest = defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version > newest:
            yield f"expected opset {newest} or older, got {opset.version}"
    if graph.sparse_initializer:
        yield "sparse initialisers are not supported"
    imported = {opset.domain for opset in model.opset_import}
    for node in graph.node:
        if not in_onnx_domain(node) and node.domain not in imported:
            yield f"operator {operator_name(node)}: expected an opset import of its domain {node.domain}"
    for node in (*graph.node, *(node for function in model.functions for node in function.node)):
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            yield f"operator {operator_name(node)}: control flow ({node.op_type}) is not supported"
        if in_onnx_domain(node) and node.op_type in _SEQUENCE_OPERATORS:
            yield f"operator {operator_name(node)}: sequences ({node.op_type}) are not supported"
        for attribute in node.attribute:
            if not _is_credible(attribute, len(node.output)):
                value = helper.get_attribute_value(attribute)
                yield f"operator {operator_name(node)}: expected a possible {attribute.name}, got {value}"
    for value in (*graph.input, *graph.output):
        if value.type.WhichOneof("value") not in (None, "tensor_type"):
            yield f"{value.name}: expected graph inputs and outputs to be tensors"
    for value in graph.input:
        if not is_complete(value):
            yield f"input {value.name}: expected a declared element type and number of dimensions"
    for what, values in (("input", graph.input), ("output", graph.output)):
        for name, count in Counter(value.name for value in values).items():
            if count > 1:
                yield f"expected distinct {what}s, got {name} {count} times"


def _is_credible(attribute: onnx.AttributeProto, outputs: int) -> bool:
    """False for what ONNX's shape inference takes on trust, and then ends the process or fills the memory."""
    match attribute.name:
        case "num_outputs":
            return attribute.i == outputs
        case "axes" | "axis" | "batch_dims" | "perm":
            least = 0 if attribute.name == "batch_dims" else -_MOST_DIMS
            return all(least <= value <= _MOST_DIMS for value in (attribute.i, *attribute.ints))
    return True


def _misfits(model: onnx.ModelProto) -> Iterator[str]:
    """Initialisers whose inline data does not have the declared size."""
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        if any(size < 0 for size in tensor.dims):
            yield f"initialiser {tensor.name}: expected sizes from 0, got {list(tensor.dims)}"
        if tensor.external_data:
            continue
        size_bytes = dense_bytes(tensor.data_type, tensor.dims)
        if tensor.HasField("raw_data"):
            if len(tensor.raw_data) != size_bytes:
                yield (
                    f"initialiser {tensor.name}: expected {size_bytes} bytes of data, "
                    f"got {len(tensor.raw_data)}"
                )
            continue
        try:
            numpy_helper.to_array(tensor)
        except (TypeError, ValueError) as error:
            yield f"initialiser {tensor.name}: expected data of its declared size: {one_line(error)}"


def _unservable(model: onnx.ModelProto) -> Iterator[str]:
    """What keeps a normalised graph from being served."""
    inputs = {value.name for value in model.graph.input}
    for value in model.graph.output:
        if value.name in inputs:
            yield f"output {value.name}: expected a tensor that an operator makes, got an input"
        if not is_complete(value):
            yield f"output {value.name}: its shape cannot be inferred, expected a declared one"
    if not inputs:
        yield "expected a graph with inputs"
    if not structure(model).owned:
        yield "expected outputs that depend on the inputs, got constants only"


def _check(model: onnx.ModelProto) -> None:
    """ONNX's own checks, on a copy without big data; output types that are open are inferred later."""
    from onnx import TensorProto, checker, helper

    checked = light_copy(model)
    for value in checked.graph.output:
        if not is_complete(value):
            value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, None))
            value.type.tensor_type.shape.SetInParent()
    try:
        checker.check_model(checked)
    except (checker.ValidationError, ValueError) as error:
        raise InputError(f"not a valid ONNX model: {one_line(error)}") from error
