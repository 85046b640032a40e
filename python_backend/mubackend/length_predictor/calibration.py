"""Learning on the job how long the served model's answers really are.

A predictor knows the answers of the model that its data came from. This maps its score to what the served
model was seen to generate: isotonic regression over a sliding window of finished requests, so the order that
the predictor gives is kept, blended with the score itself while there is little to go by. Bounded in memory,
written to disk as it learns, restored at start; it says when the map has stopped fitting.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from muserve.isotonic import RisingCurve, fit_rising_curve

logger = logging.getLogger(__name__)
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationLaw:
    """How quickly to believe what is seen.

    The last ``window`` finished requests are kept, the map is fitted anew every ``refit_every`` of them. With
    n requests seen the map counts ``n / (n + trusted_after)``, the score the rest. Drift: over the last
    ``drift_window`` requests the answers' tokens over the expected ones leave ``drift_band``.
    """

    window: int = 2_000
    refit_every: int = 50
    trusted_after: int = 100
    drift_window: int = 200
    drift_band: tuple[float, float] = (0.8, 1.25)


@dataclass(frozen=True, slots=True)
class Drift:
    """``ratio`` of observed to expected tokens of the latest requests; ``alarm``: outside its band."""

    ratio: float
    alarm: bool


class OnlineCalibration:
    """Score to expected tokens, learnt from ``observe``; safe to call from several threads."""

    def __init__(self, path: Path | None = None, law: CalibrationLaw | None = None) -> None:
        """Go on from ``path`` if it holds a calibration; one that cannot be read is logged and begun anew."""
        self._law = CalibrationLaw() if law is None else law
        self._path = path
        self._lock = threading.Lock()
        self._seen: deque[tuple[float, float]] = deque(maxlen=self._law.window)
        self._judged: deque[tuple[float, float]] = deque(maxlen=self._law.drift_window)
        self._curve: RisingCurve | None = None
        self._weight = 0.0
        self._since_fit = 0
        self._alarmed = False
        if path is not None and path.exists():
            self._seen.extend(_read(path))
            self._fit()

    def __len__(self) -> int:
        """How many finished requests are remembered: at most the law's window."""
        return len(self._seen)

    def expected_tokens(self, score: float) -> float:
        """What a request of that ``score`` is expected to generate: at least 1, rising with the score."""
        curve, weight = self._curve, self._weight
        if curve is None or not math.isfinite(score):
            return max(score, 1.0) if math.isfinite(score) else 1.0
        mapped = float(curve(np.array([score]))[0])
        return max((1.0 - weight) * score + weight * mapped, 1.0)

    def observe(self, predicted_score: float, actual_tokens: float) -> None:
        """A request of ``predicted_score`` has ended after ``actual_tokens`` of its own accord.

        Do not report answers that were cut (by a limit, a cancellation): they say too little. Pairs that are
        not finite, or negative, are ignored. Every ``refit_every`` calls this fits and writes the file.
        """
        if not (math.isfinite(predicted_score) and math.isfinite(actual_tokens) and actual_tokens >= 0.0):
            return
        with self._lock:
            self._judged.append((self.expected_tokens(predicted_score), actual_tokens))
            self._seen.append((predicted_score, actual_tokens))
            self._since_fit += 1
            if self._since_fit < self._law.refit_every:
                return
            self._fit()
            self._warn()
        self.save()

    def drift(self) -> Drift:
        """How the latest answers compare with what was expected; no alarm before the window is full."""
        with self._lock:
            return self._drift()

    def save(self) -> None:
        """Write what is remembered, whole or not at all. A disk that refuses is logged: serving goes on."""
        if self._path is None:
            return
        with self._lock:
            scores, tokens = [pair[0] for pair in self._seen], [pair[1] for pair in self._seen]
            content = json.dumps({"format": FORMAT, "scores": scores, "tokens": tokens})
            fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}.partial")
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                fresh.write_text(content + "\n", "utf-8")
                fresh.replace(self._path)
            except OSError as error:
                logger.warning("%s: the calibration cannot be written: %s", self._path, error)
                with suppress(OSError):
                    fresh.unlink()

    def _fit(self) -> None:
        self._since_fit = 0
        if not self._seen:
            return
        pairs = np.array(self._seen, np.float64)
        self._curve = fit_rising_curve(pairs[:, 0], pairs[:, 1])
        self._weight = len(pairs) / (len(pairs) + self._law.trusted_after)

    def _drift(self) -> Drift:
        if len(self._judged) < self._law.drift_window:
            return Drift(1.0, False)
        expected, actual = (sum(pair[side] for pair in self._judged) for side in (0, 1))
        ratio = actual / expected
        low, high = self._law.drift_band
        return Drift(ratio, not low <= ratio <= high)

    def _warn(self) -> None:
        drift = self._drift()
        if drift.alarm and not self._alarmed:
            logger.warning(
                "answers are %.2f times as long as predicted: the predictor no longer fits the served model",
                drift.ratio,
            )
        self._alarmed = drift.alarm


def _read(path: Path) -> list[tuple[float, float]]:
    try:
        content = json.loads(path.read_text("utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format is {content['format']}, expected {FORMAT}")
        pairs = [(float(s), float(t)) for s, t in zip(content["scores"], content["tokens"], strict=True)]
        if not all(math.isfinite(value) for pair in pairs for value in pair):
            raise ValueError("a number is not finite")
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s: no calibration can be read from it, starting anew: %s", path, error)
        return []
    return pairs
