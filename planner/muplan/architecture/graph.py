"""Write ONNX graphs operator by operator, with weights that have a name and a shape but no data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from muserve.weightless import TRANSPOSED_SUFFIX, hollow_weights, missing_weights

if TYPE_CHECKING:
    import onnx

OPSET = 18
_IR_VERSION = 10

Dtype = Literal["fp16", "fp32"]
Step = Literal["prefill", "decode"]
Dims = Sequence[int | str]


class GraphBuilder:
    """A graph under construction; every method that adds an operator returns the name of its result.

    Activations and weights have the float type ``dtype``. An operator and its result carry the same name:
    the scope it was added in, which is the Hugging Face module it belongs to, and its type.
    """

    def __init__(self, dtype: Dtype) -> None:
        from onnx import TensorProto

        self.half = dtype == "fp16"
        self.float_type = int(TensorProto.FLOAT16 if self.half else TensorProto.FLOAT)
        self._nodes: list[onnx.NodeProto] = []
        self._names: dict[str, int] = {}
        self._weights: dict[str, onnx.TensorProto] = {}
        self._tables: set[str] = set()
        self._constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def add(self, scope: str, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator with one result."""
        (result,) = self.add_many(scope, op_type, inputs, 1, **attributes)
        return result

    def add_many(
        self, scope: str, op_type: str, inputs: Sequence[str], results: int, **attributes: Any
    ) -> tuple[str, ...]:
        """Add an operator with several results."""
        from onnx import helper

        name = f"{scope}/{op_type}"
        times = self._names[name] = self._names.get(name, 0) + 1
        name = name if times == 1 else f"{name}_{times}"
        outputs = (name,) if results == 1 else tuple(f"{name}.{index}" for index in range(results))
        self._nodes.append(helper.make_node(op_type, list(inputs), list(outputs), name, **attributes))
        return outputs

    def embedding(self, module: str, rows: int, columns: int) -> str:
        """The weight of an embedding ``module``, which a tied head may multiply by as well."""
        name = f"{module}.weight"
        self._tables.add(name)
        return self.weight(name, (rows, columns))

    def weight(self, name: str, dims: Sequence[int]) -> str:
        """A weight of the network, shared when it is named again."""
        from onnx import TensorProto

        tensor = TensorProto(name=name, dims=dims, data_type=self.float_type)
        known = self._weights.setdefault(name, tensor)
        assert known.dims == tensor.dims, f"{name} has one shape"
        return name

    def matrix(self, name: str, rows: int, columns: int, *, transposed: bool) -> str:
        """The weight matrix [rows, columns] called ``name``, which files hold ``transposed`` or not."""
        return self.weight(name + TRANSPOSED_SUFFIX if transposed else name, (rows, columns))

    def integers(self, values: int | Sequence[int]) -> str:
        """An int64 constant; a scalar for a bare integer."""
        return self._constant(np.array(values, np.int64))

    def numbers(self, values: float | Sequence[float], *, full: bool = False) -> str:
        """A constant of the graph's float type, of fp32 when ``full``."""
        return self._constant(np.array(values, np.float16 if self.half and not full else np.float32))

    def table(self, values: np.ndarray[Any, np.dtype[Any]]) -> str:
        """A constant with the dtype and shape of ``values``."""
        return self._constant(values)

    def cast(self, scope: str, tensor: str, *, full: bool) -> str:
        """``tensor`` in fp32 when ``full``, else in the graph's float type, for graphs where these differ."""
        from onnx import TensorProto

        return self.add(scope, "Cast", tensor, to=TensorProto.FLOAT if full else self.float_type)

    def reshape(self, scope: str, tensor: str, dims: Sequence[int]) -> str:
        """0 keeps a dim, -1 is what remains."""
        return self.add(scope, "Reshape", tensor, self.integers(dims))

    def input(self, name: str, dims: Dims, onnx_dtype: int | None = None) -> str:
        """A public input, of the graph's float type unless told otherwise."""
        from onnx import helper

        self._inputs.append(helper.make_tensor_value_info(name, onnx_dtype or self.float_type, list(dims)))
        return name

    def output(self, name: str, tensor: str, dims: Dims) -> None:
        """Make ``tensor`` public as ``name``."""
        from onnx import helper

        self._nodes.append(helper.make_node("Identity", [tensor], [name], name))
        self._outputs.append(helper.make_tensor_value_info(name, self.float_type, list(dims)))

    def model(self, name: str) -> onnx.ModelProto:
        """The finished model, weightless."""
        from onnx import helper

        graph = helper.make_graph(
            self._nodes,
            name,
            self._inputs,
            self._outputs,
            [*self._weights.values(), *self._constants.values()],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION
        )
        model.producer_name = "muserve"
        return hollow_weights(model, frozenset(self._weights), frozenset(self._tables))

    def _constant(self, values: np.ndarray[Any, np.dtype[Any]]) -> str:
        from onnx import numpy_helper

        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self._constants:
            kind = "x".join(str(size) for size in values.shape) or "scalar"
            name = f"{values.dtype}_{kind}_{len(self._constants)}"
            self._constants[key] = numpy_helper.from_array(values, name)
        return self._constants[key].name


def parameter_count(model: onnx.ModelProto) -> int:
    """Elements of all weights of a graph made by ``GraphBuilder``."""
    return sum(math.prod(tensor.dims) for tensor in missing_weights(model))
