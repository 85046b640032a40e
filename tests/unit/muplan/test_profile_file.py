"""Profiles: what the modelled one says, and that a file holds exactly it or is refused in one sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from muplan.catalog import load_llm
from muplan.cli import main
from muplan.profile.buckets import Sizes, bucket_works
from muplan.profile.llm import decode_law
from muplan.profile.modelled import modelled_profile
from muplan.profile.profile_file import Profile, Row, parse_profile, profile_bytes, read_profile
from muplan.sources import load_source
from muserve.errors import InputError
from muserve.gpu.parts import load_part
from muserve.physics import busy_power_w
from muserve.plan import Basis, Phase


def profile_of(name: str, **sizes: Any) -> Profile:
    source = load_source(f"catalog:{name}", Path())
    return modelled_profile(source, load_part("V100-16GB"), bucket_works(source, Sizes(**sizes)))


@pytest.fixture(scope="module")
def resnet() -> Profile:
    return profile_of("resnet-50", batches=(1, 8))


def test_a_bucket_is_the_sum_of_its_partitions_and_of_its_operators(resnet: Profile) -> None:
    for bucket in resnet.buckets:
        for rows in (bucket.partitions, bucket.operators):
            assert sum(row.latency_ms for row in rows) == pytest.approx(bucket.whole.latency_ms, rel=1e-4)
            assert sum(row.k * row.latency_ms for row in rows) == pytest.approx(
                bucket.whole.k * bucket.whole.latency_ms, rel=1e-4
            )
            assert sum(row.flops for row in rows) == pytest.approx(bucket.whole.flops, rel=1e-4)
            assert sum(row.weight_bytes for row in rows) == bucket.whole.weight_bytes


def test_the_time_of_every_row_is_its_launch_memory_and_compute(resnet: Profile) -> None:
    for row in resnet.buckets[0].operators:
        pieces = (row.launch_ms or 0) + (row.memory_ms or 0) + (row.compute_ms or 0)
        assert pieces == pytest.approx(row.latency_ms, rel=1e-4)


def test_a_larger_batch_is_more_sensitive_to_the_clock(resnet: Profile) -> None:
    one, eight = resnet.buckets
    assert 0.4 < one.whole.k < eight.whole.k < 1
    assert one.whole.latency_ms < eight.whole.latency_ms < 8 * one.whole.latency_ms


def test_power_is_the_parts_at_the_rows_sensitivity(resnet: Profile) -> None:
    part = load_part("V100-16GB")
    for row in (resnet.buckets[0].whole, *resnet.buckets[0].operators):
        assert row.busy_top_w == pytest.approx(busy_power_w(part, row.k, part.top_clock_mhz), rel=1e-4)
        assert row.busy_knee_w == pytest.approx(busy_power_w(part, row.k, part.knee_mhz), rel=1e-4)
        for clock in part.working_clocks_mhz:
            assert power_w(row, clock / part.top_clock_mhz) == pytest.approx(
                busy_power_w(part, row.k, clock), rel=0.04
            )


def power_w(row: Row, share: float) -> float:
    assert row.static_w is not None
    assert row.linear_w is not None
    assert row.steep_w is not None
    assert row.steep_exponent is not None
    return row.static_w + row.linear_w * share + row.steep_w * share**row.steep_exponent


def test_a_modelled_profile_says_so_and_is_the_same_bytes_each_time(resnet: Profile) -> None:
    assert {resnet.bases.latency, resnet.bases.sensitivity, resnet.bases.power} == {Basis.MODELLED}
    assert resnet.device is None
    assert resnet.measured_at is None
    assert profile_bytes(resnet) == profile_bytes(profile_of("resnet-50", batches=(8, 1)))


def test_a_file_gives_the_profile_back(resnet: Profile, tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_bytes(profile_bytes(resnet))
    assert read_profile(file) == resnet
    assert read_profile(file).fingerprint == resnet.fingerprint
    rows = [line for line in file.read_text().splitlines() if line.lstrip().startswith('["')]
    assert len(rows) >= 2 * (122 + 56)  # one line a row, so that two profiles can be compared


@pytest.fixture(scope="module")
def opt() -> Profile:
    return profile_of("opt-1.3b", batches=(1, 8), prompts=(128, 512), contexts=(256,))


def test_a_generative_model_is_profiled_by_prompt_and_by_batch_and_context(opt: Profile) -> None:
    buckets = [(bucket.phase.value, bucket.batch, bucket.tokens) for bucket in opt.buckets]
    assert buckets == [("prefill", 1, 128), ("prefill", 1, 512), ("decode", 1, 256), ("decode", 8, 256)]
    llm, part = load_llm("opt-1.3b"), load_part("V100-16GB")
    law = decode_law(llm, part, 8, 256)
    assert opt.buckets[3].whole.latency_ms == pytest.approx(law.latency_ms, rel=1e-4)
    assert opt.buckets[3].whole.k == pytest.approx(law.sensitivity.value, rel=1e-4)
    assert opt.dtype == "fp16"
    assert parse_profile(profile_bytes(opt), "p.json") == opt


def test_a_decoder_may_be_cut_between_its_layers(opt: Profile) -> None:
    for bucket in opt.buckets:
        assert len(bucket.partitions) == 24
        middle = bucket.partitions[1:-1]
        assert {row.flops for row in middle} == {middle[0].flops}
        assert all("layers.7." in row.name for row in bucket.partitions[7:8])


def test_default_sizes_stay_within_what_the_model_takes() -> None:
    source = load_source("catalog:gpt2-xl", Path())  # 1,024 tokens
    works = list(bucket_works(source, Sizes(batches=(1,), contexts=(128,))))
    assert [w.tokens for w in works if w.phase is Phase.PREFILL] == [128, 512, 1024]


def edited(profile: Profile, *path: str | int, value: Any) -> str:
    """The profile's text with one value replaced; a column of a table is named by its heading."""
    document = json.loads(profile_bytes(profile))
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    last = path[-1]
    place[COLUMNS.index(last) if isinstance(place, list) and isinstance(last, str) else last] = value
    return json.dumps(document)


COLUMNS = list(Row.__dataclass_fields__)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("version",), 7, "version: expected profile version 1, got 7"),
        (("buckets", 1, "whole", "latency_ms"), math.nan, r"buckets\[1\].whole.latency_ms: .*finite number"),
        (("buckets", 0, "whole", "latency_ms"), -1.0, r"whole.latency_ms: expected more than 0, got -1"),
        (
            ("buckets", 0, "operators", "rows", 3, "latency_ms"),
            -1.0,
            r"operators\[3\].latency_ms: expected 0",
        ),
        (
            ("buckets", 0, "operators", "rows", 3, "k"),
            1.5,
            r"operators\[3\].k: expected .* in \[0, 1\], got 1.5",
        ),
        (("buckets", 0, "whole", "k_high"), 0.1, "k_low, k_high: expected a range"),
        (
            ("buckets", 0, "partitions", "rows"),
            [],
            r"buckets\[0\].partitions: expected pieces from operator 0",
        ),
        (
            ("buckets", 0, "partitions", "columns"),
            ["k"],
            r"buckets\[0\].partitions: expected the columns name, ",
        ),
        (("buckets", 0, "operators", "rows", 2), [1], r"operators.rows\[2\]: expected 24 values"),
        (("buckets", 0, "batch"), 8, r"buckets\[1\]: expected each batch and tokens once"),
        (("buckets",), [], "buckets: expected inference of a single-pass model"),
        (("colour",), "green", "colour: unknown key"),
    ],
)
def test_a_bad_file_is_one_sentence(
    resnet: Profile, path: tuple[str | int, ...], value: Any, complaint: str
) -> None:
    with pytest.raises(InputError, match=f"p.json: .*{complaint}"):
        parse_profile(edited(resnet, *path, value=value), "p.json")


@given(st.binary(max_size=40) | st.recursive(st.none() | st.integers(), st.lists).map(json.dumps))
def test_any_other_text_is_refused(text: bytes | str) -> None:
    with pytest.raises(InputError, match=r"p\.json"):
        parse_profile(text, "p.json")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["profile", *arguments])


def test_the_command_shows_buckets_operators_and_partitions(tmp_path: Path) -> None:
    file = tmp_path / "resnet.json"
    result = run("resnet-50", "--gpu", "V100-16GB", "--batch", "1,4", "-o", str(file))
    assert result.exit_code == 0, result.output
    assert max(len(line) for line in result.stdout.splitlines()) <= 120
    assert "slowest of 122 operators" in result.stdout
    assert "candidate partitions" in result.stdout
    assert "modelled" in result.stdout
    assert "measured" not in result.stdout
    assert [bucket.batch for bucket in read_profile(file).of_phase(Phase.INFERENCE)] == [1, 4]


def test_json_is_the_file(tmp_path: Path) -> None:
    file = tmp_path / "resnet.json"
    result = run("catalog:resnet-50", "--gpu", "V100-16GB", "--batch", "2", "--json", "-o", str(file))
    assert result.stdout.encode() == file.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("resnet-51", "--gpu", "V100-16GB"), "unknown catalogue model 'resnet-51'"),
        (("resnet-50", "--gpu", "V1000"), "unknown GPU part 'V1000'"),
        (("resnet-50", "--gpu", "V100-16GB", "--batch", "1,0"), "expected whole numbers of 1 or more"),
        (("resnet-50", "--gpu", "V100-16GB", "--prompt", "128"), "single-pass: expected --batch only"),
        (
            ("opt-1.3b", "--gpu", "V100-16GB", "--prompt", "4096"),
            "opt-1.3b takes 2048 tokens at most, got 4096",
        ),
        (("opt-1.3b", "--gpu", "V100-16GB", "--dim", "tokens=3"), "opt-1.3b is generative"),
        (("resnet-50", "--gpu", "V100-16GB", "--dim", "colour=3"), "--dim colour: no such free dimension"),
        (("resnet-50", "--gpu", "V100-16GB", "--dim", "colour"), "expected AXIS=SIZE"),
        (("resnet-50", "--gpu", "V100-16GB", "-o", "/nowhere/p.json"), "--output: /nowhere: expected a dir"),
    ],
)
def test_a_wrong_request_is_one_sentence(arguments: tuple[str, ...], complaint: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert "Traceback" not in result.output
