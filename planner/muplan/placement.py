"""Which GPU every partition goes on: the least average power at the lowest clocks that keep the SLOs. Pure.

Nothing here looks at sensitivities directly. A GPU has one clock for all it runs, and that clock is set
by the resident that bears the least, so putting together what suffers alike follows from minimising
power.

Small clusters are enumerated; larger ones are built greedily, in a few orders, and improved by moving
partitions and swapping pairs until nothing helps. Both are deterministic and independent of the order of
the models.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from muplan.group import Group
from muplan.initial_clocks import clock_reason, lowest_clocks, top_clocks
from muplan.operating import Assignment, ClusterModel, Point
from muplan.workload import Demand, Slot, StageKey

# Share of each SLO that the plan may use up: what the queueing approximations may be wrong by.
SLO_GUARD = 0.9

# Up to so many assignments are all tried (a few seconds on one core).
EXHAUSTIVE_LIMIT = 4096

_TIE_W = 1e-9

# A way to change an assignment; returns it unchanged where it does not apply.
Move = Callable[[dict[StageKey, int]], dict[StageKey, int]]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Score:
    """How good an assignment is, smallest first: memory missing, attainment missing, then power."""

    overflow_bytes: int
    shortfall: float
    power_w: float

    @property
    def feasible(self) -> bool:
        """Memory suffices and every attainment target is met at the top clocks."""
        return self.overflow_bytes == 0 and self.shortfall == 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where each stage goes (stage name -> GPU name) and what is predicted there.

    ``point`` is at the chosen clocks, ``default_point`` the same placement at the driver's default
    clock everywhere. Attainments are those of the whole SLO, in the order of ``demands``.
    """

    demands: tuple[Demand, ...]
    gpu_of: dict[str, str]
    clock_reasons: tuple[str, ...]
    point: Point
    default_point: Point
    score: Score


def place(demands: Sequence[Demand], slots: Sequence[Slot], *, guard: float = SLO_GUARD) -> Placement:
    """The best placement found; ``score.feasible`` tells whether it keeps every SLO.

    ``slots`` must not be empty and stage names must be distinct. An infeasible result is the least bad
    one.
    """
    ordered = tuple(sorted(demands, key=lambda demand: demand.name))
    guarded = [replace(demand, slo_ms=demand.slo_ms * guard) for demand in ordered]
    search = Search(ClusterModel(guarded, slots))
    assignment, score = search.best()
    clocks: dict[int, int] = {}
    reasons: dict[int, str] = {}
    for group in search.model.groups(assignment):
        own = lowest_clocks(group) if score.feasible else top_clocks(group)
        clocks |= own
        reasons |= {gpu: clock_reason(group, own, gpu, guard) for gpu in own}
    exact = ClusterModel(ordered, slots)
    return Placement(
        demands=ordered,
        gpu_of={
            ordered[model].stages[stage].name: slots[gpu].name
            for (model, stage), gpu in sorted(assignment.items())
        },
        clock_reasons=tuple(reasons[gpu] for gpu in range(len(slots))),
        point=exact.point(assignment, [clocks[gpu] for gpu in range(len(slots))]),
        default_point=exact.point(assignment, [slot.part.top_clock_mhz for slot in slots]),
        score=score,
    )


class Search:
    """Looks for the assignment with the smallest score, or (``any_feasible``) for one that is feasible."""

    def __init__(self, model: ClusterModel, *, any_feasible: bool = False) -> None:
        self.model = model
        self._any_feasible = any_feasible
        self._nodes: dict[str, list[int]] = {}
        for gpu, slot in enumerate(model.slots):
            self._nodes.setdefault(slot.node, []).append(gpu)

    def best(self) -> tuple[dict[StageKey, int], Score]:
        """Exhaustive when that is quick, else greedy and local search."""
        return self.exhaustive() if self.assignments() <= EXHAUSTIVE_LIMIT else self.local()

    def assignments(self) -> int:
        """How many assignments there are: the stages of a model stay on one node."""
        return math.prod(
            sum(len(gpus) ** len(demand.stages) for gpus in self._nodes.values())
            for demand in self.model.demands
        )

    def score(self, assignment: Assignment) -> Score:
        """Score of a (possibly partial) assignment."""
        used = self.model.memory_used(assignment)
        pairs = zip(used, self.model.slots, strict=True)
        overflow = sum(max(0, taken - slot.part.memory_bytes) for taken, slot in pairs)
        groups = self.model.groups(assignment)
        top = self._point(assignment, groups, top_clocks)
        pairs_met = zip(top.attainment, self.model.demands, strict=True)
        shortfall = sum(max(0.0, demand.attainment_target - met) for met, demand in pairs_met)
        if overflow or shortfall or self._any_feasible:
            # Ranked by pressure as well: between two overloaded GPUs attainment alone sees no
            # difference.
            return Score(overflow_bytes=overflow, shortfall=shortfall, power_w=top.power_w)
        point = self._point(assignment, groups, lowest_clocks)
        return Score(overflow_bytes=0, shortfall=0.0, power_w=point.power_w)

    def _point(
        self, assignment: Assignment, groups: Sequence[Group], rule: Callable[[Group], dict[int, int]]
    ) -> Point:
        clocks: dict[int, int] = {}
        for group in groups:
            clocks |= rule(group)
        return self.model.point(assignment, [clocks[gpu] for gpu in range(len(self.model.slots))])

    def exhaustive(self) -> tuple[dict[StageKey, int], Score]:
        """The best of all assignments, the first one of equals."""
        best: tuple[dict[StageKey, int], Score] | None = None
        for assignment in self._all():
            score = self.score(assignment)
            if best is None or _better(score, best[1]):
                best = assignment, score
            if self._any_feasible and score.feasible:
                break
        assert best is not None, "a cluster has at least one GPU"
        return best

    def local(self) -> tuple[dict[StageKey, int], Score]:
        """The best end of a few local searches, each from a greedy construction in another order."""
        best: tuple[dict[StageKey, int], Score] | None = None
        for order in self._orders():
            found = self._improved(self._greedy(order))
            if best is None or _better(found[1], best[1]):
                best = found
            if self._any_feasible and found[1].feasible:
                break
        assert best is not None, "there is at least one order"
        return best

    def _orders(self) -> tuple[list[int], ...]:
        """Models by what may be hard to place: the largest, the busiest, the tightest SLO first."""
        part = self.model.slots[0].part.name
        demands = self.model.demands
        memory = [sum(stage.memory_bytes for stage in demand.stages) for demand in demands]
        alone_ms = [demand.isolated_latency_ms(part) for demand in demands]
        work = [demand.rate_rps * ms for demand, ms in zip(demands, alone_ms, strict=True)]
        tightness = [ms / demand.slo_ms for demand, ms in zip(demands, alone_ms, strict=True)]

        def hardest_first(hardness: Sequence[float]) -> list[int]:
            return sorted(range(len(demands)), key=lambda model: (-hardness[model], model))

        return hardest_first(memory), hardest_first(work), hardest_first(tightness)

    def _improved(self, assignment: dict[StageKey, int]) -> tuple[dict[StageKey, int], Score]:
        """Moves and swaps until a whole round of them helps nothing."""
        score = self.score(assignment)
        moves = list(self._moves())
        improved = True
        while improved:
            improved = False
            for move in moves:
                if self._any_feasible and score.feasible:
                    return assignment, score
                trial = move(assignment)
                if trial == assignment:
                    continue
                trial_score = self.score(trial)
                if _better(trial_score, score):
                    assignment, score, improved = trial, trial_score, True
        return assignment, score

    def _all(self) -> Iterator[dict[StageKey, int]]:
        """All assignments, of those that only exchange equal GPUs the first."""
        demands = self.model.demands
        keys = [(m, s) for m, demand in enumerate(demands) for s in range(len(demand.stages))]
        choices = [self._options(demand) for demand in demands]
        for chosen in itertools.product(*choices):
            gpus = list(itertools.chain.from_iterable(chosen))
            if self._canonical(gpus):
                yield dict(zip(keys, gpus, strict=True))

    def _options(self, demand: Demand) -> list[tuple[int, ...]]:
        return [
            option
            for gpus in self._nodes.values()
            for option in itertools.product(gpus, repeat=len(demand.stages))
        ]

    def _canonical(self, gpus: Sequence[int]) -> bool:
        """Whether equal GPUs (same node and part) come into use in the order of their numbers."""
        slots = self.model.slots
        used: set[int] = set()
        for gpu in gpus:
            if gpu not in used:
                earlier = (
                    g
                    for g in range(gpu)
                    if slots[g].node == slots[gpu].node and slots[g].part.name == slots[gpu].part.name
                )
                if any(g not in used for g in earlier):
                    return False
                used.add(gpu)
        return True

    def _greedy(self, order: Sequence[int]) -> dict[StageKey, int]:
        """Each model where it costs least given those before it in ``order``."""
        assignment: dict[StageKey, int] = {}
        demands = self.model.demands
        for model in order:
            # The whole model on one GPU first, then its stages one by one.
            trials = [self._moved(assignment, model, gpu) for gpu in range(len(self.model.slots))]
            assignment = min(trials, key=self.score)
            for stage in range(1, len(demands[model].stages)):
                node = self.model.slots[assignment[model, 0]].node
                trials = [assignment | {(model, stage): gpu} for gpu in self._nodes[node]]
                assignment = min(trials, key=self.score)
        return assignment

    def _moves(self) -> Iterator[Move]:
        """Ways to change an assignment: move a stage within its node, move a model, swap two of either."""
        demands = self.model.demands
        stages = [(m, s) for m, demand in enumerate(demands) for s in range(len(demand.stages))]
        for key in stages:
            for gpu in range(len(self.model.slots)):
                yield partial(self._with_stage, key=key, gpu=gpu)
        for model in range(len(demands)):
            for gpu in range(len(self.model.slots)):
                yield partial(self._moved, model=model, gpu=gpu)
        for one, two in itertools.combinations(stages, 2):
            yield partial(self._with_stages_swapped, one=one, two=two)
        for left, right in itertools.combinations(range(len(demands)), 2):
            yield partial(self._with_models_swapped, left=left, right=right)

    def _moved(self, assignment: Assignment, model: int, gpu: int) -> dict[StageKey, int]:
        stages = range(len(self.model.demands[model].stages))
        return {**assignment, **{(model, stage): gpu for stage in stages}}

    def _with_stage(self, assignment: Assignment, key: StageKey, gpu: int) -> dict[StageKey, int]:
        allowed = self._same_node(assignment[key], gpu)
        return {**assignment, key: gpu} if allowed else dict(assignment)

    def _with_stages_swapped(
        self, assignment: Assignment, one: StageKey, two: StageKey
    ) -> dict[StageKey, int]:
        first, second = assignment[one], assignment[two]
        allowed = self._same_node(first, second)
        return {**assignment, one: second, two: first} if allowed else dict(assignment)

    def _with_models_swapped(self, assignment: Assignment, left: int, right: int) -> dict[StageKey, int]:
        first, second = assignment[left, 0], assignment[right, 0]
        return self._moved(self._moved(assignment, left, second), right, first)

    def _same_node(self, one: int, two: int) -> bool:
        return self.model.slots[one].node == self.model.slots[two].node


def _better(score: Score, than: Score) -> bool:
    """Strictly better, beyond rounding."""
    if (score.overflow_bytes, score.shortfall) != (than.overflow_bytes, than.shortfall):
        return score < than
    return score.power_w < than.power_w - _TIE_W
