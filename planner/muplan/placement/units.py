"""What the search moves about: every replica of every way to deploy every model. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from muplan.deployment import Deployment, deployments, replica_demand
from muplan.workload import Demand

# GPUs, by position, of each stage of each replica of a model.
Homes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to deploy a model: the demands (by position in ``Units.demands``) that its replicas are."""

    deployment: Deployment
    units: range
    stages: int

    @property
    def single(self) -> bool:
        """Whether it can live on one GPU."""
        return len(self.units) == 1 and self.deployment.degree == 1


class Units:
    """All replicas of all ways, numbered.

    ``kind[unit]`` is the same for replicas that are alike, ``owner[unit]`` the position of the model.
    """

    def __init__(self, models: Sequence[Demand]) -> None:
        self.models = tuple(models)
        self.ways: list[tuple[Way, ...]] = []
        self.demands: list[Demand] = []
        self.kind: list[int] = []
        self.owner: list[int] = []
        kinds = 0
        for owner, model in enumerate(models):
            ways = []
            for deployment in deployments(model):
                demand = replica_demand(model, deployment)
                units = range(len(self.demands), len(self.demands) + deployment.replicas)
                ways.append(Way(deployment=deployment, units=units, stages=len(demand.stages)))
                self.demands += [demand] * deployment.replicas
                self.kind += [kinds] * deployment.replicas
                self.owner += [owner] * deployment.replicas
                kinds += 1
            self.ways.append(tuple(ways))
