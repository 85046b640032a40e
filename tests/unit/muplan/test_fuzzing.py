"""Whatever is in a file, it is planned or refused in one line: the fuzzers of ``tools/``, for a moment."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muplan.pipeline import generate
from muplan.spec import read_spec
from muserve.errors import InfeasiblePlanError, InputError

ROOT = Path(__file__).parents[3]
SMALL = """\
cluster:
  nodes:
    - name: node0
      gpus: [{part: V100-16GB, count: 2, virtual: true}]
  link_gbs: 12
models:
  - name: bert
    source: catalog:bert-base
    kind: single-pass
    slo_ms: 600
    load: {rate_rps: 1.5}
"""


@pytest.fixture(scope="module", autouse=True)
def tools() -> Iterator[None]:
    sys.path.insert(0, str(ROOT / "tools"))
    yield
    sys.path.remove(str(ROOT / "tools"))


@pytest.fixture(scope="module")
def fuzz_spec(tools: None) -> ModuleType:
    import fuzz_spec

    return fuzz_spec


@pytest.fixture(scope="module")
def fuzz_onnx(tools: None) -> ModuleType:
    import fuzz_onnx

    return fuzz_onnx


def verdict(module: ModuleType, data: bytes) -> str:
    from fuzzing import verdict

    return verdict(module.check, data)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), times=st.integers(1, 4))
def test_a_changed_spec_is_a_spec_or_one_sentence(fuzz_spec: ModuleType, seed: int, times: int) -> None:
    chance = random.Random(seed)
    data = chance.choice(fuzz_spec.seeds())
    for _ in range(times):
        data = fuzz_spec.mutate(data, chance)
    verdict(fuzz_spec, data)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), times=st.integers(1, 3))
def test_a_changed_onnx_file_is_planned_or_one_sentence(fuzz_onnx: ModuleType, seed: int, times: int) -> None:
    chance = random.Random(seed)
    data = chance.choice(fuzz_onnx.seeds())
    for _ in range(times):
        data = fuzz_onnx.mutate(data, chance)
    verdict(fuzz_onnx, data)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_no_onnx_file(fuzz_onnx: ModuleType, data: bytes) -> None:
    assert verdict(fuzz_onnx, data)


def test_the_fuzzers_reach_both_ends(fuzz_spec: ModuleType, fuzz_onnx: ModuleType) -> None:
    """Changes that never get past the parser, or never do harm, would test nothing."""
    for module in (fuzz_spec, fuzz_onnx):
        assert not any(verdict(module, data) for data in module.seeds())
        chance = random.Random(0)
        verdicts = [verdict(module, module.mutate(chance.choice(module.seeds()), chance)) for _ in range(100)]
        kinds = Counter("taken" if not sentence else "refused" for sentence in verdicts)
        assert min(kinds["taken"], kinds["refused"]) >= 3
        assert len({sentence[-20:] for sentence in verdicts}) > 10


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("slo_ms: 600", "slo_ms: 1.0e-300"),
        ("slo_ms: 600", "slo_ms: 1.0e+300"),
        ("slo_ms: 600", "slo_scale: 1.0e+300"),
        ("rate_rps: 1.5", "rate_rps: 1.0e+300"),
        ("rate_rps: 1.5", "rate_rps: 1.0e-300"),
        ("rate_rps: 1.5", "rate_rps: 1.5, cv: 0"),
        ("slo_ms: 600", "slo_ms: 600\n    attainment: 0.999999999999"),
        ("slo_ms: 600", "slo_ms: 600\n    attainment: 1.0e-12"),
        ("slo_ms: 600", "slo_ms: 600\n    dims: {batch: 4096, sequence: 4096}"),
        ("slo_ms: 600", "slo_ms: 600\n    partitions: 4096"),
        ("link_gbs: 12", "link_gbs: 1.0e-300"),
        ("link_gbs: 12", "link_gbs: 1.0e+300"),
        ("catalog:bert-base", "onnx:missing.onnx"),
    ],
)
def test_extreme_figures_are_planned_or_refused_and_leave_nothing_half_written(
    old: str, new: str, tmp_path: Path
) -> None:
    assert old in SMALL
    (tmp_path / "s.yaml").write_text(SMALL.replace(old, new))
    sentence = ""
    try:
        generate(read_spec(tmp_path / "s.yaml"), tmp_path / "out")
    except (InputError, InfeasiblePlanError) as error:
        sentence = str(error)
    assert len(sentence.splitlines()) <= 1
    written = {path.name for path in tmp_path.iterdir()} - {"s.yaml"}
    assert written == (set() if sentence else {"out"})
