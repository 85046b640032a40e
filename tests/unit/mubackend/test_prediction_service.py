from __future__ import annotations

import logging
import math

import pytest

from mubackend.failure import invalid
from mubackend.length_predictor.service import Prediction, PredictionService, ServiceLaw
from mubackend.metrics import Reason, RecordedMetrics

ARRIVAL_MS = 1_700_000_000_000
LAW = ServiceLaw(const_ms=30.0, ms_per_token=10.0, alpha=2.0)


def length(text: str) -> float:
    return float(text)


def ask(prompt: str, sampling: str = "", law: ServiceLaw = LAW) -> tuple[Prediction, RecordedMetrics]:
    metrics = RecordedMetrics()
    service = PredictionService(length, law, metrics)
    return service.answer(lambda: prompt, lambda: sampling, ARRIVAL_MS), metrics


def test_the_priority_is_the_virtual_finish_time() -> None:
    prediction, metrics = ask("100")
    assert prediction == Prediction(
        predicted_tokens=100.0, priority=ARRIVAL_MS + 2 * 1030, arrival_ms=ARRIVAL_MS
    )
    assert not metrics.totals


@pytest.mark.parametrize(
    ("sampling", "tokens"),
    [('{"max_tokens": 20}', 20.0), ('{"min_tokens": 300}', 300.0), ("{bad", 100.0), ('{"n": 5}', 100.0)],
)
def test_the_limits_of_the_request_clip_the_prediction(sampling: str, tokens: float) -> None:
    assert ask("100", sampling)[0].predicted_tokens == tokens


@pytest.mark.parametrize("prompt", ["not a number", "nan", "inf", "-5"])
def test_a_failing_predictor_means_first_come_first_served(
    prompt: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        prediction, metrics = ask(prompt)
    assert prediction == Prediction(predicted_tokens=0.0, priority=ARRIVAL_MS, arrival_ms=ARRIVAL_MS)
    assert metrics.total("mu_fallback_total", Reason.PREDICTION_FAILED) == 1
    assert "a prediction failed" in caplog.text


def test_text_that_is_none_means_first_come_first_served() -> None:
    def unreadable() -> str:
        raise invalid("text_input: expected UTF-8")

    metrics = RecordedMetrics()
    prediction = PredictionService(length, LAW, metrics).answer(unreadable, lambda: "", ARRIVAL_MS)
    assert prediction.priority == ARRIVAL_MS
    assert ask("")[0].priority == ARRIVAL_MS
    assert metrics.total("mu_fallback_total", Reason.NO_TEXT) == 1


def test_under_pure_ssjf_an_unknown_request_is_first() -> None:
    pure = ServiceLaw(const_ms=30.0, ms_per_token=10.0, alpha=math.inf)
    assert ask("100", law=pure)[0].priority == 1030
    assert ask("", law=pure)[0].priority == 0
