"""From a spec to a plan and the files that serve it.

spec -> sources -> profiles and cuts -> placement and clocks -> plan -> files -> directory
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from muplan.assembly import assemble_plan, cluster_slots, part_files
from muplan.infeasible import infeasible
from muplan.partition import CutWeights
from muplan.placement import place
from muplan.report.plan_baselines import baseline_powers
from muplan.report.plan_page import REPORT_FILE, plan_page
from muplan.repository.artefacts import artefacts
from muplan.repository.batching import check_batching
from muplan.repository.directory import Artefact, check_directory, write_directory
from muplan.sources import load_source
from muplan.spec import SpecFile
from muplan.spec_paths import (
    check_engine,
    check_model_paths,
    check_predictor,
    check_weights,
    with_profile,
    with_trace_read,
)
from muplan.spec_serving import Target
from muplan.staging import StagedModel, stage_model
from muplan.workload import Slot
from muserve.errors import InputError
from muserve.gpu.parts import PARTS_DIR
from muserve.plan import Plan

# Called with one short sentence before each step that may take a moment.
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan, the models and GPUs it was made from, and every file of its directory but the report."""

    plan: Plan
    staged: tuple[StagedModel, ...]
    slots: tuple[Slot, ...]
    files: dict[PurePosixPath, Artefact]


def generate(
    spec_file: SpecFile,
    directory: Path,
    on_progress: Progress | None = None,
    *,
    exact: bool = False,
    report: bool = False,
) -> Plan:
    """Plan the spec and write plan and repositories to ``directory``, all or nothing.

    ``exact`` asks for the least power there is, in small cases; ``report`` for ``report.html`` too, which
    needs the packages of ``muplan.report.plan_page``. Raises InputError for what is wrong with the spec or
    the directory or too large for that, and InfeasiblePlanError when no placement keeps the SLOs.
    """
    check_directory(directory)
    planned = plan_spec(spec_file, on_progress, exact=exact)
    files = planned.files
    if report:
        files = {**files, PurePosixPath(REPORT_FILE): partial(_draw, planned, on_progress)}
    _tell(on_progress, f"writing {directory}")
    write_directory(directory, files)
    return planned.plan


def plan_spec(spec_file: SpecFile, on_progress: Progress | None = None, *, exact: bool = False) -> Planned:
    """Plan without writing; raises as ``generate`` does."""
    spec = spec_file.spec
    with _blamed_on(f"{spec_file.path}: cluster"):
        slots = cluster_slots(spec.cluster, spec_file.path.parent)
    with _blamed_on(str(spec_file.path)):
        check_predictor(spec_file)
    parts = {slot.part.name: slot.part for slot in slots}
    weights = CutWeights(**spec.partitioning.model_dump())
    staged = []
    for position, model in enumerate(spec.models):
        _tell(on_progress, f"profiling and cutting {model.name} ({model.source})")
        with _blamed_on(f"{spec_file.path}: models[{position}] ({model.name})"):
            check_model_paths(model, spec_file)
            model = with_trace_read(model, spec_file)
            source = load_source(model.source, spec_file.path.parent)
            source = with_profile(model, source, spec_file, parts)
            check_engine(model, source, spec_file)
            check_weights(model, source, spec_file)
            staged.append(
                stage_model(
                    model,
                    source,
                    parts,
                    spec.cluster.link_gbs,
                    weights,
                    tensor_parallel=spec.serving.target is Target.NGC,
                )
            )
            check_batching(staged[-1])
    _check_names(spec_file, staged)
    _tell(on_progress, f"placing {sum(len(m.partitions) for m in staged)} partitions on {len(slots)} GPUs")
    placement = place(
        [model.demand for model in staged], slots, objective=spec.objective, seed=spec.seed, exact=exact
    )
    if not placement.score.feasible:
        raise infeasible(placement, slots)
    plan = assemble_plan(spec_file, slots, staged, placement)
    files = artefacts(plan, staged, spec_file) | part_files(slots)
    return Planned(plan=plan, staged=tuple(staged), slots=slots, files=files)


def _draw(planned: Planned, on_progress: Progress | None, file: Path) -> None:
    """The page needs the part files of the plan: in the order of their names they are written before it."""
    _tell(on_progress, f"drawing {REPORT_FILE}")
    baselines_w = baseline_powers([model.demand for model in planned.staged], planned.slots)
    file.write_bytes(plan_page(planned.plan, planned.staged, baselines_w, file.parent / PARTS_DIR))


def _check_names(spec_file: SpecFile, staged: Sequence[StagedModel]) -> None:
    """The spec cannot know the names of models whose count of partitions it leaves to us."""
    names = Counter(name for model in staged for name in model.spec.triton_names(len(model.partitions)))
    for name, count in names.items():
        if count > 1:
            raise InputError(
                f"{spec_file.path}: models: expected distinct Triton model names, got {name} {count} times"
            )


def _tell(on_progress: Progress | None, sentence: str) -> None:
    if on_progress is not None:
        on_progress(sentence)


@contextmanager
def _blamed_on(place_in_spec: str) -> Iterator[None]:
    """Say where in the spec an InputError comes from."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place_in_spec}: {error}") from error
