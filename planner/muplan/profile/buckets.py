"""The sizes a model is profiled at, and the operators that run at each of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from muplan.architecture.generative import GenerativeModel
from muplan.profile.llm import decode_costs, decode_dims, prefill_costs, prefill_dims
from muplan.profile.operators import BATCH_AXIS, OperatorCost, graph_dtype, operator_costs
from muplan.profile.roofline import EAGER, GRAPH_RUNTIME, Runtime
from muplan.profile.shapes import dynamic_axes
from muplan.sources import LoadedModel
from muserve.errors import InputError
from muserve.plan import Phase

if TYPE_CHECKING:
    import onnx

INFERENCE_BATCHES = (1, 2, 4, 8, 16, 32)
DECODE_BATCHES = (1, 8, 32, 128)
TOKENS = (128, 512, 1024, 2048)

_LAYER = re.compile(r"(?P<stack>\w.*?)\.(?P<layer>\d+)[./]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What to profile. Empty means the defaults, as far as the model goes.

    ``batches`` are inputs of a single-pass model or running requests of a decode step, ``prompts`` tokens of
    a prefill, ``contexts`` tokens each running request has in its cache. ``dims`` are sizes of a
    single-pass model's other dynamic axes.
    """

    batches: tuple[int, ...] = ()
    prompts: tuple[int, ...] = ()
    contexts: tuple[int, ...] = ()
    dims: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """One bucket: its graph, the operators at its size, and the runtime that is expected to run them.

    ``sizes`` gives every dynamic axis of the graph, ``fixed_dims`` those that are the same in all buckets.
    """

    phase: Phase
    batch: int
    tokens: int
    sizes: dict[str, int]
    fixed_dims: dict[str, int]
    graph: onnx.ModelProto
    costs: tuple[OperatorCost, ...]
    dtype: str
    runtime: Runtime

    @cached_property
    def places(self) -> tuple[int, ...]:
        """Positions of operators that a cut may follow, ascending: of a generative model the layers' last."""
        if self.phase is not Phase.INFERENCE:
            return _between_layers([cost.name for cost in self.costs])
        return tuple(position for position, cost in enumerate(self.costs[:-1]) if cost.cuttable)

    def __str__(self) -> str:
        if self.phase is Phase.INFERENCE:
            return f"inference, batch {self.batch}"
        if self.phase is Phase.PREFILL:
            return f"prefill of {self.tokens} tokens"
        return f"decode, batch {self.batch}, context {self.tokens}"


def bucket_works(source: LoadedModel, sizes: Sizes) -> Iterator[Work]:
    """The works of every bucket of ``source``, in order of phase, batch and tokens.

    Raises InputError for sizes that the model does not have or cannot take.
    """
    for key, values in (
        ("--batch", sizes.batches),
        ("--prompt", sizes.prompts),
        ("--context", sizes.contexts),
    ):
        if any(value < 1 for value in values):
            raise InputError(f"{key}: expected sizes of 1 or more, got {min(values)}")
    if source.llm is not None:
        yield from _generative(source.llm, sizes)
    else:
        assert source.graph is not None, "a source has one of the two"
        yield from _single_pass(source, source.graph, sizes)


def _generative(llm: GenerativeModel, sizes: Sizes) -> Iterator[Work]:
    if sizes.dims:
        raise InputError(f"--dim: {llm.name} is generative: expected --prompt, --batch and --context only")
    for key, given in (("--prompt", sizes.prompts), ("--context", sizes.contexts)):
        if max(given, default=0) > llm.max_tokens:
            raise InputError(f"{key}: {llm.name} takes {llm.max_tokens} tokens at most, got {max(given)}")
    known = tuple(tokens for tokens in TOKENS if tokens <= llm.max_tokens)
    for prompt in sorted(set(sizes.prompts or known)):
        yield Work(
            phase=Phase.PREFILL,
            batch=1,
            tokens=prompt,
            sizes={BATCH_AXIS: 1, **prefill_dims(llm, prompt)},
            fixed_dims={},
            graph=llm.prefill,
            costs=prefill_costs(llm, 1, prompt),
            dtype=llm.dtype,
            runtime=EAGER,
        )
    for batch in sorted(set(sizes.batches or DECODE_BATCHES)):
        for context in sorted(set(sizes.contexts or known)):
            yield Work(
                phase=Phase.DECODE,
                batch=batch,
                tokens=context,
                sizes={BATCH_AXIS: batch, **decode_dims(llm, context)},
                fixed_dims={},
                graph=llm.decode,
                costs=decode_costs(llm, batch, context),
                dtype=llm.dtype,
                runtime=EAGER,
            )


def _single_pass(source: LoadedModel, graph: onnx.ModelProto, sizes: Sizes) -> Iterator[Work]:
    if sizes.prompts or sizes.contexts:
        raise InputError(f"--prompt, --context: {source.source} is single-pass: expected --batch only")
    axes = dynamic_axes(graph)
    for axis in sizes.dims:
        if axis not in axes or axis == BATCH_AXIS:
            known = ", ".join(a for a in axes if a != BATCH_AXIS) or "none"
            raise InputError(f"--dim {axis}: no such free dimension, expected one of: {known}")
    if BATCH_AXIS not in axes and sizes.batches not in ((), (1,)):
        raise InputError(f"--batch: {source.source} has no axis called {BATCH_AXIS}: expected 1 only")
    defaults = INFERENCE_BATCHES if BATCH_AXIS in axes else (1,)
    dims = {**source.default_dims, **sizes.dims}
    missing = next((axis for axis in axes if axis != BATCH_AXIS and axis not in dims), None)
    if missing is not None:
        raise InputError(
            f"{source.source} has the free dimension {missing}: give its size, --dim {missing}=SIZE"
        )
    dtype = graph_dtype(graph)
    for batch in sorted(set(sizes.batches or defaults)):
        yield Work(
            phase=Phase.INFERENCE,
            batch=batch,
            tokens=0,
            sizes={axis: batch if axis == BATCH_AXIS else dims[axis] for axis in axes},
            fixed_dims={axis: dims[axis] for axis in axes if axis != BATCH_AXIS},
            graph=graph,
            costs=operator_costs(graph, batch, dims),
            dtype=dtype,
            runtime=GRAPH_RUNTIME,
        )


def _between_layers(names: Sequence[str]) -> tuple[int, ...]:
    """Where operators' names, which start with their module's, go on to the next layer of a stack."""
    places, here = [], None
    for position, name in enumerate(names):
        found = _LAYER.match(name)
        if found is None:
            continue
        there = (found["stack"], int(found["layer"]))
        if here is not None and (there == (here[0], here[1] + 1) or (there[0] != here[0] and there[1] == 0)):
            places.append(position - 1)
            here = there
        here = here or there
    return tuple(places)
