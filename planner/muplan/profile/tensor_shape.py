"""Element type and size of a tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

from muserve.tensor_data import dense_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorShape:
    """Element type (``onnx.TensorProto.DataType``) and concrete dims of one tensor."""

    onnx_dtype: int
    dims: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.dims)

    @property
    def size_bytes(self) -> int:
        """Bytes of the dense tensor."""
        return dense_bytes(self.onnx_dtype, self.dims)
