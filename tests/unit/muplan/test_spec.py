"""Reading specs: what is accepted, and the one sentence for everything that is not."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from muplan.spec import SCHEMA_FILE, Spec, parse_spec, read_spec, schema_bytes
from muplan.spec_text import MAX_BYTES, parse_mapping
from muserve.errors import InputError
from muserve.plan import ModelKind
from muserve.queue_order import Order

EXAMPLES = Path(__file__).parents[3] / "examples"

SMALL = """\
cluster:
  nodes:
    - name: node0
      gpus: [{part: V100-16GB, count: 2, virtual: true}]
models:
  - name: bert
    source: catalog:bert-base
    kind: single-pass
    slo_ms: 600
    load: {rate_rps: 1.5}
"""


def complaint(text: str) -> str:
    with pytest.raises(InputError) as caught:
        parse_spec(parse_mapping(text, "s.yaml"), "s.yaml")
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.startswith("s.yaml")
    assert caught.value.exit_code == 2
    return sentence


def test_small_spec_gets_defaults() -> None:
    spec = parse_spec(parse_mapping(SMALL, "s.yaml"), "s.yaml")
    (model,) = spec.models
    assert model.kind is ModelKind.SINGLE_PASS
    assert (model.partitions, model.load.cv, model.attainment) == ("auto", 1.0, 0.99)
    assert (spec.order, spec.order_parameters.alpha) == (Order.BOUNDED, 30.0)


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.name)
def test_examples_are_valid(file: Path) -> None:
    assert read_spec(file).spec.models


def test_alpha_alone_chooses_aging_and_an_order_takes_its_own_numbers() -> None:
    def spec(text: str) -> Spec:
        return parse_spec(parse_mapping(SMALL + text, "s.yaml"), "s.yaml")

    assert spec("predictor: {alpha: 4}\n").order is Order.AGING
    chosen = spec("serving: {order: relative_cap, cap_factor: 7}\n")
    assert (chosen.order, chosen.order_parameters.cap_factor) == (Order.RELATIVE_CAP, 7.0)
    assert chosen.order_parameters.bound_extreme == 2.5
    for text, problem in (
        ("serving: {cap_factor: 7}\n", "serving.cap_factor is not used by order bounded"),
        ("serving: {bound_quantile: 2}\n", "bound_quantile: expected a number from 0.5 to 1, got 2"),
        ("serving: {order: lifo}\n", "serving.order"),
        ("serving: {order: ssjf}\npredictor: {alpha: 4}\n", "predictor.alpha belongs to order aging"),
    ):
        with pytest.raises(InputError, match=problem):
            spec(text)


def test_infinite_alpha_is_shortest_first() -> None:
    spec = parse_spec(parse_mapping(SMALL + "predictor: {alpha: .inf}\n", "s.yaml"), "s.yaml")
    assert math.isinf(spec.predictor.alpha)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("slo_ms: 600", "slo_ms: 600\n    slo: 1", "models[0].slo: unknown key"),
        ("slo_ms: 600", "slo_msec: 600", "models[0].slo_msec: unknown key, did you mean slo_ms?"),
        ("slo_ms: 600", "slo_ms: 600\n    xyzzy: 1", "s.yaml: models[0].xyzzy: unknown key"),
        ("slo_ms: 600", "slo_ms: 0", "models[0].slo_ms: input should be greater than 0, got 0"),
        ("slo_ms: 600", "slo_ms: .inf", "models[0].slo_ms: input should be a finite number, got inf"),
        ("slo_ms: 600", "slo_ms: 1e400", "models[0].slo_ms: input should be a finite number, got inf"),
        ("slo_ms: 600", "slo_ms: [600]", "models[0].slo_ms: input should be a valid number"),
        ("slo_ms: 600", "slo_scale: 1", "models[0].slo_scale: input should be greater than 1, got 1"),
        ("rate_rps: 1.5", "rate_rps: .nan", "models[0].load.rate_rps: input should be"),
        ("rate_rps: 1.5", "rate_rps: .inf", "models[0].load.rate_rps: input should be a finite number"),
        ("rate_rps: 1.5", "rate_rps: -2", "models[0].load.rate_rps: input should be greater than 0, got -2"),
        ("rate_rps: 1.5", "rate_rps: 1, cv: .nan", "models[0].load.cv: input should be"),
        (
            "rate_rps: 1.5",
            "rate_rps: yes",
            "models[0].load.rate_rps: input should be a valid number, got True",
        ),
        ("count: 2", "count: 0", "gpus[0].count: input should be greater than or equal to 1, got 0"),
        ("count: 2", f"count: {9**400}", "gpus[0].count: input should be"),
        ("slo_ms: 600", "slo_ms: -5", "models[0].slo_ms: input should be greater than 0, got -5"),
        ("slo_ms: 600", "slo_ms: '600'", "models[0].slo_ms: input should be a valid number, got '600'"),
        ("slo_ms: 600", "slo_ms: .nan", "models[0].slo_ms: input should be"),
        ("    slo_ms: 600\n", "", "models[0]: give either slo_ms or slo_scale"),
        ("slo_ms: 600", "slo_ms: 600\n    slo_scale: 5", "models[0]: give either slo_ms or slo_scale"),
        ("rate_rps: 1.5", "rate_rps: 0", "models[0].load.rate_rps: input should be greater than 0, got 0"),
        ("kind: single-pass", "kind: llm", "models[0].kind: input should be 'generative' or 'single-pass'"),
        ("catalog:bert-base", "bert-base", "models[0].source: string should match pattern"),
        ("name: bert", "name: a/b", "models[0].name: string should match pattern"),
        ("name: bert", "name: 5", "models[0].name: input should be a valid string, got 5"),
        ("count: 2", "count: 2.5", "cluster.nodes[0].gpus[0].count: input should be a valid integer"),
        ("slo_ms: 600", "slo_ms: 600\n    tokens: {}", "tokens has no meaning for a single-pass model"),
        ("slo_ms: 600", "slo_ms: 600\n    weights: {}", "models[0].weights: give either seed or file"),
        (
            "gpus: [",
            "gpus: [{part: V100-16GB}, ",
            "cluster.nodes[0]: expected all GPUs of a node to be virtual, or none",
        ),
    ],
)
def test_wrong_value_is_one_sentence(old: str, new: str, expected: str) -> None:
    assert old in SMALL
    assert expected in complaint(SMALL.replace(old, new))


def test_duplicate_model_names() -> None:
    model = SMALL[SMALL.index("  - name: bert") :]
    assert "expected distinct model names, got bert 2 times" in complaint(SMALL + model)


def test_models_whose_triton_models_collide() -> None:
    whole = SMALL[SMALL.index("  - name: bert") :]
    clash = SMALL.replace("    slo_ms: 600", "    partitions: 2\n    slo_ms: 600") + whole.replace(
        "name: bert\n", "name: bert_stage1\n"
    )
    assert "expected distinct Triton model names, got bert_stage1 2 times" in complaint(clash)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: [\n", "s.yaml:3: not valid YAML"),
        ("a: 1\nb: {c: 1, c: 2}\n", "s.yaml:2: not valid YAML: duplicate key c"),
        ("a: &x [1]\nb: *x\n", "s.yaml:2: not valid YAML: aliases are not supported"),
        ("2020-01-01: 3", "expected a text key"),
        ("", "expected a mapping at the top level, got an empty file"),
        ("- 1", "expected a mapping at the top level, got a list"),
        ("[" * 1_000_000, "s.yaml:1: not valid YAML: values nested too deeply, expected at most 50 levels"),
        ("- " * 500_000, "nested too deeply"),
        ("a: &a [x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n", "s.yaml:2: not valid YAML: aliases are not"),
        ("a: {&k b: *k}", "aliases are not supported"),
        ("a:\n\tb: 1\n", "s.yaml:2: not valid YAML: found character that cannot start any token"),
        ('"a\\nb": 1\n"a\\nb": 2\n', "s.yaml:2: not valid YAML: duplicate key a b"),
        ("a: 2024-02-30", "not valid YAML: day is out of range"),
        ("? [a]\n: b\n", "expected a text key, got ['a']"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("\x00", "not valid YAML"),
    ],
)
def test_text_that_is_no_spec(text: str, expected: str) -> None:
    assert expected in complaint(text)


def test_anchors_alone_do_no_harm() -> None:
    assert parse_mapping("a: &x [1]\n", "s.yaml") == {"a": [1]}


def test_text_in_another_encoding_is_named() -> None:
    with pytest.raises(InputError, match=r"s\.yaml:2: expected UTF-8 text, got the byte 0xe9"):
        parse_mapping("a: 1\nb: caf\xe9\n".encode("latin-1"), "s.yaml")


def test_what_the_user_wrote_cannot_break_the_line_or_fill_the_screen() -> None:
    sentence = complaint(SMALL + '"spread\\nover\\u2028lines\\e[31m": 1\n')
    assert "spread over lines\N{REPLACEMENT CHARACTER}[31m: unknown key" in sentence
    sentence = complaint(SMALL.replace("slo_ms: 600", f"slo_ms: '{'6' * 100_000}'"))
    assert len(sentence) < 300


def test_a_spec_of_a_thousand_models_is_read() -> None:
    head, model = SMALL.split("models:\n")
    models = "".join(model.replace("name: bert", f"name: bert{i}") for i in range(1000))
    assert len(parse_spec(parse_mapping(f"{head}models:\n{models}", "s.yaml"), "s.yaml").models) == 1000


def test_a_million_lines_are_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "million.yaml"
    file.write_text("models:\n" + "- name: bert\n" * 1_000_000)
    with pytest.raises(InputError, match=f"million.yaml: expected a spec of at most {MAX_BYTES} bytes"):
        read_spec(file)


def test_missing_and_huge_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a readable spec: No such file"):
        read_spec(tmp_path / "none.yaml")
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(InputError, match=f"at most {MAX_BYTES} bytes"):
        read_spec(huge)


def test_seed_option_replaces_the_seed_and_the_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(SMALL)
    plain, seeded = read_spec(file), read_spec(file, seed=7)
    assert (plain.spec.seed, seeded.spec.seed) == (0, 7)
    assert plain.sha256 != seeded.sha256
    file.write_text("# a comment\n" + SMALL)
    assert read_spec(file).sha256 == plain.sha256


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=12,
    )
)
def test_any_document_is_a_spec_or_an_input_error(document: object) -> None:
    text = yaml.safe_dump({"cluster": document, "models": document})
    with pytest.raises(InputError):
        parse_spec(parse_mapping(text, "s.yaml"), "s.yaml")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_mapping_or_an_input_error(data: bytes) -> None:
    try:
        sentence = str(parse_mapping(data, "s.yaml").keys())
    except InputError as error:
        sentence = str(error)
    assert "\n" not in sentence


def test_published_schema_is_current() -> None:
    assert SCHEMA_FILE.read_bytes() == schema_bytes(), "run tools/regenerate_model_repository.py"
    assert set(json.loads(schema_bytes())["properties"]) == set(Spec.model_fields)


@pytest.mark.parametrize("number", ["1e3", "1E+3", "1.e3", "+10.0e2", ".1e4"])
def test_a_number_with_an_exponent_is_one(number: str) -> None:
    assert parse_mapping(f"rate_rps: {number}", "spec") == {"rate_rps": 1000.0}


@pytest.mark.parametrize("text", ["1e", "e3", "1e3x", "1e3.5"])
def test_a_text_that_only_begins_like_a_number_stays_one(text: str) -> None:
    assert parse_mapping(f"name: {text}", "spec") == {"name": text}
