"""The map from a predictor's score to the served model's lengths, learnt while serving."""

from __future__ import annotations

import json
import logging
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mubackend.length_predictor.calibration import CalibrationLaw, OnlineCalibration

QUICK = CalibrationLaw(window=300, refit_every=10, trusted_after=20, drift_window=40)
LENGTHS = st.floats(1.0, 4096.0)
PAIRS = st.lists(st.tuples(LENGTHS, LENGTHS), max_size=120)


@given(pairs=PAIRS, scores=st.lists(LENGTHS, min_size=2, max_size=20))
def test_never_turns_the_predictors_order_round(
    pairs: list[tuple[float, float]], scores: list[float]
) -> None:
    calibration = OnlineCalibration(law=QUICK)
    for score, tokens in pairs:
        calibration.observe(score, tokens)
    expected = [calibration.expected_tokens(score) for score in sorted(scores)]
    assert all(math.isfinite(value) and value >= 1.0 for value in expected)
    assert all(one <= other + 1e-6 * other for one, other in pairwise(expected))


def test_a_score_stands_for_itself_until_something_is_seen() -> None:
    assert OnlineCalibration().expected_tokens(123.5) == 123.5
    assert OnlineCalibration().expected_tokens(math.nan) == 1.0


def test_learns_a_model_that_answers_at_a_third_of_the_length() -> None:
    random = np.random.default_rng(0)
    calibration = OnlineCalibration(law=QUICK)
    for score in random.uniform(50, 600, 900):
        calibration.observe(float(score), float(score / 3 * random.lognormal(-0.125, 0.5)))
    for score in (100.0, 300.0, 500.0):
        assert calibration.expected_tokens(score) == pytest.approx(score / 3, rel=0.25)
    assert not calibration.drift().alarm


def test_a_score_that_knows_nothing_becomes_nearly_a_constant() -> None:
    random = np.random.default_rng(1)
    calibration = OnlineCalibration(law=CalibrationLaw(window=3000, trusted_after=1))
    for score, tokens in random.uniform(50, 600, (3000, 2)):
        calibration.observe(float(score), float(tokens))
    assert calibration.expected_tokens(550.0) - calibration.expected_tokens(100.0) < 90.0


def test_remembers_no_more_than_its_window_and_forgets_an_old_model() -> None:
    calibration = OnlineCalibration(law=QUICK)
    for factor in (1.0, 0.2):
        for score in np.random.default_rng(2).uniform(50, 600, 2 * QUICK.window):
            calibration.observe(float(score), float(factor * score))
    assert len(calibration) == QUICK.window
    weight = QUICK.window / (QUICK.window + QUICK.trusted_after)
    assert calibration.expected_tokens(400.0) == pytest.approx(400 * (1 - 0.8 * weight), rel=0.05)


def test_alarms_once_when_lengths_leave_the_band(caplog: pytest.LogCaptureFixture) -> None:
    slow = CalibrationLaw(window=5000, refit_every=10, trusted_after=20, drift_window=40)
    calibration = OnlineCalibration(law=slow)
    scores = np.random.default_rng(3).uniform(50, 600, 1000)
    with caplog.at_level(logging.WARNING):
        for score in scores:
            calibration.observe(float(score), float(score))
        assert not calibration.drift().alarm
        assert not caplog.records
        for score in scores[:100]:
            calibration.observe(float(score), float(score) * 2)
    drift = calibration.drift()
    assert drift.alarm
    assert 1.5 < drift.ratio <= 2.05
    assert len(caplog.records) == 1


@given(pairs=st.lists(st.tuples(LENGTHS, LENGTHS), min_size=10, max_size=60))
def test_goes_on_where_it_stopped(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[float, float]]
) -> None:
    path = tmp_path_factory.mktemp("state") / "calibration.json"
    before = OnlineCalibration(path, QUICK)
    for score, tokens in pairs[: len(pairs) // 10 * 10]:
        before.observe(score, tokens)
    after = OnlineCalibration(path, QUICK)
    assert [after.expected_tokens(s) for s in (1, 90, 5000)] == [
        before.expected_tokens(s) for s in (1, 90, 5000)
    ]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": 9}', '{"format": 1, "scores": [1], "tokens": [NaN]}']
)
def test_a_broken_file_is_logged_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(content, "utf-8")
    calibration = OnlineCalibration(path, QUICK)
    assert "starting anew" in caplog.text
    for score in range(1, 11):
        calibration.observe(float(score), float(score))
    assert len(json.loads(path.read_text("utf-8"))["scores"]) == 10


def test_a_disk_that_refuses_does_not_stop_serving(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way", "utf-8")
    calibration = OnlineCalibration(tmp_path / "file" / "calibration.json", QUICK)
    for score in range(1, 21):
        calibration.observe(float(score), 2.0 * score)
    assert "cannot be written" in caplog.text
    assert calibration.expected_tokens(10.0) > 10.0


@given(score=st.sampled_from([math.nan, math.inf, 5.0]), tokens=st.sampled_from([math.nan, -1.0, math.inf]))
def test_what_is_no_length_is_ignored(score: float, tokens: float) -> None:
    calibration = OnlineCalibration(law=QUICK)
    calibration.observe(score, tokens)
    assert len(calibration) == 0
