"""Flags before variables before the file before defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mupower.actuator import Actuator
from mupower.settings import Settings, load_settings
from muserve.errors import InputError

URL = "http://127.0.0.1:8002/metrics"
FLAGS: dict[str, Any] = {"plan": Path("p.json"), "metrics": (URL,)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "mupower.yaml"
    file.write_text(f"plan: plans/plan.json\nmetrics: [{URL}]\nperiod_s: 2\nlaw: static\nactuator: cap\n")
    return file


def test_each_layer_hides_the_next(file: Path) -> None:
    environment = {"MUPOWER_PERIOD_S": "3", "MUPOWER_LAW": "default"}
    settings = load_settings({"law": "miad"}, environment, file)
    assert (settings.law, settings.period_s, settings.actuator) == ("miad", 3.0, Actuator.CAP)
    assert settings.plan == file.parent / "plans/plan.json", "a relative plan is meant from the file"
    assert settings.listen == Settings(plan=Path("p"), metrics=(URL,)).listen


def test_an_absolute_plan_stays(file: Path) -> None:
    file.write_text(f"plan: /etc/plan.json\nmetrics: [{URL}]\n")
    assert load_settings({}, {}, file).plan == Path("/etc/plan.json")


def test_variables_alone_are_enough() -> None:
    environment = {
        "MUPOWER_PLAN": "p.json",
        "MUPOWER_METRICS": f"{URL} http://b:8002/metrics",
        "MUPOWER_DRY_RUN": "true",
        "MUPOWER_EXPORTER": "0",
        "MUPOWER_NODE": "",
    }
    settings = load_settings({}, environment, None)
    assert settings.metrics == (URL, "http://b:8002/metrics")
    assert (settings.dry_run, settings.exporter, settings.node) == (True, False, None)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("periods: 1", "mupower.yaml: periods: unknown key, did you mean period_s?"),
        ("period_s: soon", "mupower.yaml: period_s: input should be a valid number"),
        ("period_s: .nan", "mupower.yaml: period_s: input should be a finite number"),
        ("metrics: {a: b}", "mupower.yaml: metrics"),
        ("- a", "mupower.yaml: expected settings as key: value, got list"),
        ("a: [", "mupower.yaml: not valid YAML"),
        ("law: pid", "control law: expected one of"),
        ("listen: '9105'", "--listen: expected HOST:PORT"),
        ("actuator: magic", "mupower.yaml: actuator: input should be 'auto', 'clock' or 'cap'"),
    ],
)
def test_a_bad_file_is_one_sentence(file: Path, text: str, sentence: str) -> None:
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        load_settings(FLAGS if "metrics" not in text else {"plan": "p"}, {}, file)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "environment", "sentence"),
    [
        ({"metrics": (URL,)}, {}, "--plan: required: as a flag, as MUPOWER_PLAN, or as plan in the --config"),
        ({"plan": Path("p")}, {}, "--metrics: required: as a flag, as MUPOWER_METRICS,"),
        (FLAGS, {"MUPOWER_PERIOD_S": "soon"}, "MUPOWER_PERIOD_S: input should be a valid number"),
        (FLAGS | {"period_s": float("nan")}, {}, "--period: input should be a finite number"),
        (FLAGS | {"metrics": ("x",)}, {}, "--metrics: expected a URL"),
    ],
)
def test_a_bad_value_names_where_it_stands(
    flags: dict[str, Any], environment: dict[str, str], sentence: str
) -> None:
    with pytest.raises(InputError) as caught:
        load_settings(flags, environment, None)
    assert str(caught.value).startswith(sentence)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: expected a readable settings file"):
        load_settings(FLAGS, {}, tmp_path / "none.yaml")
