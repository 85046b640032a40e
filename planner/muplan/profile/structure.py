"""Which operators of a linearised ONNX graph travel, and which tensors cross a cut.

The order is the one the file stores, which ONNX requires to be topological. Two kinds of operator
belong to no partition in particular and are repeated wherever their result is needed:

* constant expressions, such as the transposition of a weight;
* shape arithmetic on public inputs, such as the target shape of a Reshape: a few integers, which would
  otherwise cross every cut.

Operators that no public output depends on belong nowhere: runtimes drop them too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_SHAPE_SOURCES = frozenset({"Shape", "Size"})
_SHAPE_ARITHMETIC = frozenset(
    {
        *("Abs", "Add", "And", "Cast", "Ceil", "Concat", "Div", "Equal", "Floor", "Gather", "Greater"),
        *("Identity", "Less", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "ReduceProd", "Reshape"),
        *("Slice", "Squeeze", "Sub", "Unsqueeze", "Where"),
    }
)
RANDOM = frozenset({"Bernoulli", "Multinomial", "RandomNormal", "RandomUniform"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """The linearised graph.

    ``owned`` are the positions of operators that belong to exactly one partition; all others are repeated
    where needed, or dead. ``producers`` maps a tensor to its operator's position, ``sources`` the position
    of each of the others to what its result comes from. ``constants`` are the initialisers, ``inputs`` and
    ``outputs`` the public tensors in graph order.
    """

    nodes: tuple[onnx.NodeProto, ...]
    owned: frozenset[int]
    producers: dict[str, int]
    sources: dict[int, tuple[str, ...]]
    constants: dict[str, onnx.TensorProto]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def maker(self, name: str) -> str:
        """The type of the operator that makes ``name``; empty for inputs and initialisers."""
        position = self.producers.get(name)
        return "" if position is None else self.nodes[position].op_type

    def needs(self, position: int) -> Iterator[str]:
        """Tensors that the operator at ``position`` reads, seen through repeated operators.

        Yields initialisers, public inputs and results of owned operators; a name may come twice.
        """
        return _read_through(self.nodes[position], self.producers, self.owned, self.sources)

    def lifetimes(self) -> dict[str, tuple[int, int]]:
        """For every result that a later owned operator reads: where it is made and where it is last read."""
        last_use: dict[str, int] = {}
        for position in sorted(self.owned):
            last_use.update((name, position) for name in self.needs(position) if name in self.producers)
        return {
            name: (position, last_use[name])
            for position in sorted(self.owned)
            for name in self.nodes[position].output
            if last_use.get(name, -1) > position
        }


def in_onnx_domain(node: onnx.NodeProto) -> bool:
    """Whether the operator claims to be one of ONNX's own, and not another vendor's."""
    return node.domain in ("", "ai.onnx")


def structure(model: onnx.ModelProto) -> Structure:
    """The structure of ``model``, whose operators must be in topological order."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    inputs = tuple(value.name for value in model.graph.input if value.name not in constants)
    live = _live(model)
    constant, shape = set(constants), set[str]()
    owned = []
    for position, node in enumerate(model.graph.node):
        read = {name for name in node.input if name}
        if node.op_type not in RANDOM and read <= constant:
            constant.update(node.output)
        elif (node.op_type in _SHAPE_SOURCES and read <= set(inputs)) or (
            node.op_type in _SHAPE_ARITHMETIC and read <= constant | shape
        ):
            shape.update(node.output)
        elif position in live:
            owned.append(position)
    nodes, owned_positions = tuple(model.graph.node), frozenset(owned)
    producers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    sources: dict[int, tuple[str, ...]] = {}
    for position in sorted(set(range(len(nodes))) - owned_positions):
        read_names = _read_through(nodes[position], producers, owned_positions, sources)
        sources[position] = tuple(dict.fromkeys(read_names))
    return Structure(
        nodes=nodes,
        owned=owned_positions,
        producers=producers,
        sources=sources,
        constants=constants,
        inputs=inputs,
        outputs=tuple(value.name for value in model.graph.output),
    )


def _read_through(
    node: onnx.NodeProto,
    producers: Mapping[str, int],
    owned: frozenset[int],
    sources: Mapping[int, tuple[str, ...]],
) -> Iterator[str]:
    for name in node.input:
        position = producers.get(name)
        if position is not None and position not in owned:
            yield from sources[position]
        elif name:
            yield name


def _live(model: onnx.ModelProto) -> frozenset[int]:
    """Positions of operators that some public output depends on."""
    wanted = {value.name for value in model.graph.output}
    live = set()
    for position in reversed(range(len(model.graph.node))):
        node = model.graph.node[position]
        if wanted.intersection(node.output):
            live.add(position)
            wanted.update(node.input)
    return frozenset(live)
