"""Recorded arrivals: what is read, what is refused, and what the planner makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from muplan.load.trace import read_trace
from muplan.spec import SpecFile, parse_spec
from muplan.spec_paths import with_trace_read
from muserve.errors import InputError

AZURE = Path(__file__).parents[4] / "shared/data/traces/azure_llm_2023_conv.csv"
LINES = [
    "TIMESTAMP,ContextTokens,GeneratedTokens",
    "2023-11-16 18:15:46.6805900,374,44",
    "2023-11-16 18:15:47.6805900,396,109",
    "2023-11-16 18:15:50.6805900,879,55",
]


def written(directory: Path, *lines: str) -> Path:
    file = directory / "trace.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_azure_columns(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, *LINES))
    assert trace.arrival_s == pytest.approx([0.0, 1.0, 4.0])
    assert trace.prompt_tokens is not None
    assert trace.output_tokens is not None
    assert trace.prompt_tokens.tolist() == [374, 396, 879]
    assert trace.output_tokens.tolist() == [44, 109, 55]
    assert trace.rate_rps == pytest.approx(2 / 4)
    assert trace.cv == pytest.approx(0.5)


def test_plain_seconds_and_other_columns(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, "user,arrival_s", "a,10", "b,10", "a,12.5"))
    assert trace.arrival_s.tolist() == [0.0, 0.0, 2.5]
    assert trace.prompt_tokens is None
    assert trace.output_tokens is None


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([], "line 1: expected a column arrival_s or TIMESTAMP"),
        (["time,n", "1,2"], "line 1: expected a column arrival_s or TIMESTAMP"),
        (["arrival_s"], "expected 2 or more requests, got 0"),
        (["arrival_s", "1"], "expected 2 or more requests, got 1"),
        (["arrival_s", "1", "1"], "all 2 are at the same"),
        (["arrival_s", "1", "3", "2"], "line 4: expected a time not before that of line 3"),
        (["arrival_s", "1", "soon"], "line 3: arrival_s: expected seconds, got 'soon'"),
        (["arrival_s", "1", "nan"], "line 3: arrival_s: expected seconds, got 'nan'"),
        ([LINES[0], "yesterday,1,1", LINES[1]], "line 2: TIMESTAMP: expected an ISO date and time"),
        ([*LINES, "2023-11-16 18:15:51,879"], "line 5: GeneratedTokens: expected a count of 1 or more"),
        (
            [*LINES, "2023-11-16 18:15:51,0,5"],
            "line 5: ContextTokens: expected a count of 1 or more, got '0'",
        ),
    ],
)
def test_what_is_no_trace_is_one_sentence(tmp_path: Path, lines: list[str], complaint: str) -> None:
    file = written(tmp_path, *lines)
    with pytest.raises(InputError) as caught:
        read_trace(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_binary_and_missing_files(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    with pytest.raises(InputError, match="expected a readable trace: No such file"):
        read_trace(file)
    file.write_bytes(b"arrival_s\n\xff\xfe\n")
    with pytest.raises(InputError, match="expected CSV text"):
        read_trace(file)


def spec_file(directory: Path, **model: object) -> SpecFile:
    document = {
        "cluster": {"nodes": [{"name": "n", "gpus": [{"part": "V100-16GB", "virtual": True}]}]},
        "models": [
            {"name": "llm", "source": "catalog:opt-1.3b", "kind": "generative", "slo_ms": 20_000, **model}
        ],
    }
    path = directory / "spec.yaml"
    return SpecFile(path=path, spec=parse_spec(document, path), sha256="")


def test_the_planner_takes_rate_burstiness_and_lengths_from_it(tmp_path: Path) -> None:
    written(tmp_path, *LINES)
    file = spec_file(tmp_path, load={"trace": "trace.csv"})
    model = with_trace_read(file.spec.models[0], file)
    assert (model.load.rate_rps, model.load.cv, model.load.trace) == (0.5, 0.5, None)
    lengths = np.array([44, 109, 55])
    assert model.answer_tokens.prompt == pytest.approx((374 + 396 + 879) / 3)
    assert model.answer_tokens.output == pytest.approx(lengths.mean())
    assert model.answer_tokens.output_cv == pytest.approx(lengths.std() / lengths.mean(), abs=1e-6)


def test_lengths_of_the_spec_come_first(tmp_path: Path) -> None:
    written(tmp_path, *LINES)
    file = spec_file(tmp_path, load={"trace": "trace.csv"}, tokens={"output": 7})
    assert with_trace_read(file.spec.models[0], file).answer_tokens.output == 7


def test_a_bad_trace_is_blamed_on_its_key(tmp_path: Path) -> None:
    file = spec_file(tmp_path, load={"trace": "none.csv"})
    with pytest.raises(InputError, match=r"^load\.trace: .*none\.csv: expected a readable trace"):
        with_trace_read(file.spec.models[0], file)


@pytest.mark.parametrize(
    ("load", "complaint"),
    [
        ({}, r"models\[0\]\.load: give either rate_rps or trace"),
        ({"rate_rps": 1, "trace": "t.csv"}, r"models\[0\]\.load: give either rate_rps or trace"),
        ({"trace": "t.csv", "cv": 2}, r"models\[0\]\.load: cv is taken from the trace"),
    ],
)
def test_contradictory_loads_are_refused(tmp_path: Path, load: dict[str, object], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        spec_file(tmp_path, load=load)


@pytest.mark.shared_data
@pytest.mark.skipif(not AZURE.exists(), reason="the Azure LLM trace is not on this machine")
def test_the_published_trace() -> None:
    trace = read_trace(AZURE)
    assert len(trace.arrival_s) == 19_366
    assert trace.rate_rps == pytest.approx(5.53, abs=0.01)
    assert trace.period_s == pytest.approx(3502, abs=1)
