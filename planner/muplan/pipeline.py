"""From a spec to a plan and the files that serve it.

spec -> sources -> profiles and cuts -> placement and clocks -> plan -> files -> directory
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from muplan.assembly import assemble_plan, cluster_slots, part_files
from muplan.infeasible import infeasible
from muplan.placement import place
from muplan.repository.artefacts import artefacts
from muplan.repository.batching import check_batching
from muplan.repository.directory import Artefact, check_directory, write_directory
from muplan.sources import load_source
from muplan.spec import SpecFile, Target
from muplan.spec_paths import (
    check_engine,
    check_model_paths,
    check_predictor,
    check_weights,
    with_trace_read,
)
from muplan.staging import stage_model
from muserve.errors import InputError
from muserve.plan import Plan

# Called with one short sentence before each step that may take a moment.
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan and every file of its directory."""

    plan: Plan
    files: dict[PurePosixPath, Artefact]


def generate(
    spec_file: SpecFile, directory: Path, on_progress: Progress | None = None, *, exact: bool = False
) -> Plan:
    """Plan the spec and write plan and repositories to ``directory``, all or nothing.

    ``exact`` asks for the least power there is, in small cases. Raises InputError for what is wrong with the
    spec or the directory or too large for that, and InfeasiblePlanError when no placement keeps the SLOs.
    """
    check_directory(directory)
    planned = plan_spec(spec_file, on_progress, exact=exact)
    _report(on_progress, f"writing {directory}")
    write_directory(directory, planned.files)
    return planned.plan


def plan_spec(spec_file: SpecFile, on_progress: Progress | None = None, *, exact: bool = False) -> Planned:
    """Plan without writing; raises as ``generate`` does."""
    spec = spec_file.spec
    with _blamed_on(f"{spec_file.path}: cluster"):
        slots = cluster_slots(spec.cluster, spec_file.path.parent)
    with _blamed_on(str(spec_file.path)):
        check_predictor(spec_file)
    parts = {slot.part.name: slot.part for slot in slots}
    staged = []
    for position, model in enumerate(spec.models):
        _report(on_progress, f"profiling and cutting {model.name} ({model.source})")
        with _blamed_on(f"{spec_file.path}: models[{position}] ({model.name})"):
            check_model_paths(model, spec_file)
            model = with_trace_read(model, spec_file)
            source = load_source(model.source, spec_file.path.parent)
            check_engine(model, spec)
            check_weights(model, source, spec_file)
            staged.append(
                stage_model(
                    model,
                    source,
                    parts,
                    spec.cluster.link_gbs,
                    tensor_parallel=spec.serving.target is Target.NGC,
                )
            )
            check_batching(staged[-1])
    _report(on_progress, f"placing {sum(len(m.partitions) for m in staged)} partitions on {len(slots)} GPUs")
    placement = place(
        [model.demand for model in staged], slots, objective=spec.objective, seed=spec.seed, exact=exact
    )
    if not placement.score.feasible:
        raise infeasible(placement, slots)
    plan = assemble_plan(spec_file, slots, staged, placement)
    return Planned(plan=plan, files=artefacts(plan, staged, spec_file) | part_files(slots))


def _report(on_progress: Progress | None, sentence: str) -> None:
    if on_progress is not None:
        on_progress(sentence)


@contextmanager
def _blamed_on(place_in_spec: str) -> Iterator[None]:
    """Say where in the spec an InputError comes from."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place_in_spec}: {error}") from error
