"""Planning from a profile file: what the laws become, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muplan.pipeline import plan_spec
from muplan.profile import profiled
from muplan.profile.buckets import Sizes, bucket_works
from muplan.profile.modelled import modelled_profile
from muplan.profile.profile_file import profile_bytes, profile_sha256
from muplan.profile.record import Bases, Profile
from muplan.sources import LoadedModel, load_source
from muplan.spec import SpecFile, parse_spec
from muplan.staging import StagedModel
from muserve.errors import InputError
from muserve.gpu.parts import load_part
from muserve.plan import Basis, Phase, Plan

MEASURED = Bases(latency=Basis.MEASURED, sensitivity=Basis.MEASURED, power=Basis.MEASURED)


def source_of(name: str) -> LoadedModel:
    return load_source(f"catalog:{name}", Path())


def profile_of(name: str, **sizes: Any) -> Profile:
    source = source_of(name)
    return modelled_profile(source, load_part("V100-16GB"), bucket_works(source, Sizes(**sizes)))


@pytest.fixture(scope="module")
def resnet() -> Profile:
    return profile_of("resnet-50", batches=(1, 2))


@pytest.fixture(scope="module")
def opt() -> Profile:
    return profile_of("opt-1.3b", batches=(1, 8), prompts=(128, 512), contexts=(128, 512))


def slower(profile: Profile, factor: float) -> Profile:
    """A measured profile in which everything takes ``factor`` times as long, and k is .5."""

    def row(old: Any) -> Any:
        return replace(old, latency_ms=factor * old.latency_ms, k=0.5, k_low=0.45, k_high=0.55)

    buckets = [
        replace(b, whole=row(b.whole), partitions=tuple(map(row, b.partitions)), operators=())
        for b in profile.buckets
    ]
    return replace(profile, buckets=tuple(buckets), bases=MEASURED)


def model(source: str, /, **changes: Any) -> dict[str, Any]:
    generative = source == "opt-1.3b"
    document = {
        "name": "m",
        "source": f"catalog:{source}",
        "kind": "generative" if generative else "single-pass",
        "slo_ms": 20_000,
        "attainment": 0.9,
        "load": {"rate_rps": 0.5},
        **({"tokens": {"prompt": 256, "output": 256}} if generative else {}),
    }
    return document | changes


def plan_with(directory: Path, profile: Profile, /, part: str = "V100-16GB", **changes: Any) -> Plan:
    (directory / "p.json").write_bytes(profile_bytes(profile))
    gpus = [{"part": part, "virtual": True}]
    one = model(profile.model.removeprefix("catalog:"), **{"profile": "p.json", **changes})
    document = {"cluster": {"nodes": [{"name": "n", "gpus": gpus}]}, "models": [one]}
    path = directory / "spec.yaml"
    return plan_spec(SpecFile(path=path, spec=parse_spec(document, path), sha256="0" * 64)).plan


def test_a_measured_profile_gives_the_plans_laws_and_its_fingerprint(resnet: Profile, tmp_path: Path) -> None:
    profile = slower(resnet, 3.0)
    plan = plan_with(tmp_path, profile, partitions=2)
    partitions = plan.models[0].partitions
    laws = [partition.law(Phase.INFERENCE) for partition in partitions]
    assert len(laws) == 2
    assert sum(law.latency_ms for law in laws) == pytest.approx(
        3 * resnet.buckets[0].whole.latency_ms, rel=1e-4
    )
    for law in laws:
        assert law.basis is law.sensitivity.basis is Basis.MEASURED
        assert (law.sensitivity.low, law.sensitivity.value, law.sensitivity.high) == (0.45, 0.5, 0.55)
    assert plan.profile_fingerprints == {"m": profile_sha256(profile)}


def test_latency_can_be_measured_and_k_modelled(resnet: Profile, tmp_path: Path) -> None:
    bases = replace(MEASURED, sensitivity=Basis.MODELLED)
    law = plan_with(tmp_path, replace(slower(resnet, 2.0), bases=bases)).models[0].partitions[0].laws[0]
    assert law.basis is Basis.MEASURED
    assert law.sensitivity.basis is Basis.MODELLED


def test_a_modelled_profile_gives_the_plan_of_no_profile(resnet: Profile, tmp_path: Path) -> None:
    with_it = plan_with(tmp_path, resnet, partitions=2).models[0].partitions
    document = {
        "cluster": {"nodes": [{"name": "n", "gpus": [{"part": "V100-16GB", "virtual": True}]}]},
        "models": [model("resnet-50", partitions=2)],
    }
    path = tmp_path / "spec.yaml"
    without = plan_spec(SpecFile(path=path, spec=parse_spec(document, path), sha256="0" * 64)).plan
    for mine, theirs in zip(with_it, without.models[0].partitions, strict=True):
        assert mine.last_operator == theirs.last_operator
        assert mine.laws[0].latency_ms == pytest.approx(theirs.laws[0].latency_ms, rel=1e-4)
        assert mine.laws[0].sensitivity.value == pytest.approx(theirs.laws[0].sensitivity.value, abs=1e-4)


def test_cuts_fall_only_where_the_profile_has_figures(resnet: Profile, tmp_path: Path) -> None:
    bucket = resnet.buckets[0]
    last = bucket.partitions[19].last
    first = replace(bucket.whole, last=last, latency_ms=1.0)
    rest = replace(bucket.whole, first=last + 1, latency_ms=0.5)
    profile = replace(resnet, buckets=(replace(bucket, partitions=(first, rest)),))
    plan = plan_with(tmp_path, profile, partitions=2)
    assert plan.models[0].partitions[0].operators == last + 1
    with pytest.raises(InputError, match=r"partitions: expected .*1 to 2"):
        plan_with(tmp_path, profile, partitions=3)


def test_a_generative_model_takes_both_phases_and_its_growth_from_the_profile(
    opt: Profile, tmp_path: Path
) -> None:
    plan = plan_with(tmp_path, slower(opt, 2.0))
    partition = plan.models[0].partitions[0]
    assert {law.basis for law in partition.laws} == {Basis.MEASURED}
    one, eight = (profiled.decode_law(slower(opt, 2.0), batch, 384).latency_ms for batch in (1, 8))
    assert partition.law(Phase.DECODE).latency_ms == pytest.approx(one, rel=1e-5)
    assert partition.decode_growth_ms == pytest.approx((eight - one) / 7, rel=1e-4)


def test_a_profile_is_of_one_gpu_and_keeps_the_engine_on_one(opt: Profile, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(profile_bytes(slower(opt, 2.0)))
    path = tmp_path / "spec.yaml"

    def staged(**engine: Any) -> StagedModel:
        document = {
            "cluster": {"nodes": [{"name": "n", "gpus": [{"part": "V100-16GB", "count": 8}]}]},
            "models": [model("opt-1.3b", profile="p.json", engine={"model": "facebook/opt-1.3b", **engine})],
            "serving": {"target": "ngc"},
        }
        return plan_spec(SpecFile(path=path, spec=parse_spec(document, path), sha256="0" * 64)).staged[0]

    assert staged().demand == staged(tensor_parallel=1).demand
    assert len(staged().demand.stages) == 1
    assert staged().demand.shardings == ()
    with pytest.raises(InputError, match=r"engine.tensor_parallel: .* expected 1 beside it, got 2"):
        staged(tensor_parallel=2)


@given(prompt=st.floats(128, 512), batch=st.integers(1, 8), context=st.floats(128, 512))
def test_between_buckets_laws_lie_between_theirs(
    opt: Profile, prompt: float, batch: int, context: float
) -> None:
    prefill, decode = profiled.prefill_law(opt, prompt), profiled.decode_law(opt, batch, context)
    for law, phase in ((prefill, Phase.PREFILL), (decode, Phase.DECODE)):
        rows = [bucket.whole for bucket in opt.of_phase(phase)]
        assert (
            min(r.latency_ms for r in rows) - 1e-9 <= law.latency_ms <= max(r.latency_ms for r in rows) + 1e-9
        )
        assert min(r.k for r in rows) - 1e-9 <= law.sensitivity.value <= max(r.k for r in rows) + 1e-9
        assert law.sensitivity.low <= law.sensitivity.value <= law.sensitivity.high


def test_at_a_bucket_the_law_is_the_buckets(opt: Profile) -> None:
    for bucket in opt.of_phase(Phase.DECODE):
        law = profiled.decode_law(opt, bucket.batch, bucket.tokens)
        assert law.latency_ms == pytest.approx(bucket.whole.latency_ms)
        assert law.sensitivity.value == pytest.approx(bucket.whole.k)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"tokens": {"prompt": 64, "output": 256}},
            r"prefill buckets around 64 prompt tokens, got 128, 512: .*--prompt",
        ),
        (
            {"tokens": {"prompt": 500, "output": 500}},
            r"decode buckets around 750 tokens of context, .*--context",
        ),
        ({"engine": {"slots": 16}}, r"decode buckets around 16 running requests, got 1, 8: .*--batch"),
    ],
)
def test_nothing_outside_of_the_buckets_is_planned(
    opt: Profile, tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        plan_with(tmp_path, opt, **changes)
    assert "spec.yaml: models[0] (m): profile: " in str(caught.value)


def test_a_profile_of_something_else_is_refused(resnet: Profile, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"p.json is for V100-16GB: expected a part of the cluster, H100"):
        plan_with(tmp_path, resnet, part="H100")
    with pytest.raises(InputError, match=r"is of catalog:resnet-50: expected one of catalog:bert-base"):
        plan_with(tmp_path, resnet, source="catalog:bert-base", dims={})
    with pytest.raises(InputError, match=r"is stale, catalog:resnet-50 has changed since"):
        plan_with(tmp_path, replace(resnet, model_fingerprint="0" * 64))
    with pytest.raises(InputError, match=r"expected a bucket of batch 4, got 1, 2"):
        plan_with(tmp_path, resnet, dims={"batch": 4})
    with pytest.raises(InputError, match=r"profile: .*nowhere.json: expected a readable profile"):
        plan_with(tmp_path, resnet, profile="nowhere.json")


def test_a_profile_at_other_sizes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="made at sequence 128: expected sequence 64"):
        plan_with(tmp_path, profile_of("bert-base", batches=(1,)), dims={"sequence": 64})
