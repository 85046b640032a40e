"""The machines and GPUs of a spec."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from muplan.spec_section import Count, NodeName, Section, refuse_duplicates


class GpuGroupSpec(Section):
    """``count`` equal GPUs of a node."""

    part: str = Field(
        description="An entry of the GPU catalogue, or a part's profile file (.json) relative to the spec."
    )
    count: Count = 1
    virtual: bool = Field(default=False, description="Simulate these GPUs instead of using devices.")


class NodeSpec(Section):
    """One machine that runs one Triton. GPUs are numbered over all its groups, from 0."""

    name: NodeName
    gpus: Annotated[tuple[GpuGroupSpec, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_world(self) -> Self:
        if len({group.virtual for group in self.gpus}) > 1:
            raise ValueError("expected all GPUs of a node to be virtual, or none")
        return self


class ClusterSpec(Section):
    """The machines, and how fast a tensor moves between two GPUs of one of them."""

    nodes: Annotated[tuple[NodeSpec, ...], Field(min_length=1)]
    link_gbs: Annotated[float, Field(ge=0.001, le=1e6)] = Field(
        default=12.0, description="GB/s between two GPUs; PCIe 3 x16 gives 12."
    )

    @model_validator(mode="after")
    def _distinct_nodes(self) -> Self:
        refuse_duplicates("node", (node.name for node in self.nodes))
        return self
