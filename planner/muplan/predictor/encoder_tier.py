"""The ``bert`` tier: an encoder learns from one part of the train side, the trees its score from the rest.

A network knows the prompts it was trained on: there its score is far better than it will be when serving,
and trees fitted on such scores would trust them too much. So the train side's conversations are parted in
two: the encoder learns from one part, and only on the other part's rows do the trees see its score. On the
first part's rows it is missing (NaN, which the trees can split on), so that these still teach the rest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muplan.predictor.encoder_network import require_torch
from muplan.predictor.encoder_onnx import export_int8
from muplan.predictor.encoder_source import Pretrained
from muplan.predictor.encoder_training import Lesson, Settings, fine_tune
from muplan.predictor.feature_table import FeatureTable
from muplan.predictor.rows import TRAIN, VALIDATION, Rows
from muserve.encoder_score import ENCODER_FILE, TOKENIZER_FILE, EncoderScore, read_tokenizer, token_ids
from muserve.errors import InputError

LEARN_SHARE = 0.6
"""The share of the train side's conversations that the encoder learns from."""
MOST_PROMPTS = 15_000
"""All opening prompts of that part, and as many of the later ones, at random."""
FIRST_ROUND_WEIGHT = 3.0
_COMPARED = 400
_SCORED_AT_ONCE = 256

Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedEncoder:
    """``learnt_from`` (n, bool) marks the rows that taught it; ``card`` says how it was made."""

    encoder: EncoderScore
    learnt_from: NDArray[np.bool_]
    card: dict[str, Any]


def teaching_rows(
    rows: Rows, seed: int, most: int = MOST_PROMPTS
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The rows that the encoder learns from, and those of the conversations that are its part, each (n,).

    The second holds the first; the train side's rest is where the trees may see its score.
    """
    random = np.random.default_rng(seed)
    groups = np.unique(rows.group[rows.part == TRAIN])
    chosen = random.permutation(groups)[: round(len(groups) * LEARN_SHARE)]
    part = (rows.part == TRAIN) & np.isin(rows.group, chosen)
    learn = part & rows.first_round
    later = random.permutation(np.flatnonzero(part & ~rows.first_round))
    learn[later[: max(0, most - int(learn.sum()))]] = True
    return learn, part


def train_encoder(
    rows: Rows,
    source: Pretrained,
    seed: int,
    work: Path,
    settings: Settings | None = None,
    on_progress: Report = lambda step, done, total: None,
) -> TrainedEncoder:
    """Fine-tune ``source``, quantise it and open it as it will be served.

    ``work`` is a directory for checkpoints, so that a run that was cut short goes on, and for the encoder's
    files. Raises InputError when a training library is missing, or the data are too few to be parted.
    """
    require_torch()
    settings = settings or Settings()
    learn, part = teaching_rows(rows, seed)
    check = (rows.part == VALIDATION) & rows.first_round
    if not learn.any() or not ((rows.part == TRAIN) & ~part).any():
        raise InputError("the data leave too few conversations to part between an encoder and the trees")
    work.mkdir(parents=True, exist_ok=True)
    (work / TOKENIZER_FILE).write_text(source.tokenizer_json(), "utf-8")
    tokenizer = read_tokenizer(work / TOKENIZER_FILE)

    def lesson(keep: NDArray[np.bool_]) -> Lesson:
        chosen = rows.where(keep)
        return Lesson(
            ids=[token_ids(tokenizer, prompt, settings.longest_tokens) for prompt in chosen.prompts],
            tokens=chosen.tokens,
            weight=np.where(chosen.first_round, FIRST_ROUND_WEIGHT, 1.0),
        )

    checked = lesson(check)
    tuned = fine_tune(source, lesson(learn), checked, settings, seed, work, on_progress)
    on_progress("encoder, int8", 0, 1)
    quantised = export_int8(tuned, checked.ids[:_COMPARED])
    partial = (work / ENCODER_FILE).with_suffix(".partial")
    partial.write_bytes(quantised.graph)
    partial.replace(work / ENCODER_FILE)
    encoder = EncoderScore.load(work)
    return TrainedEncoder(
        encoder=encoder,
        learnt_from=part,
        card={
            "pretrained": source.name,
            "fingerprint": encoder.fingerprint,
            "settings": asdict(settings),
            "opening_prompts": int((learn & rows.first_round).sum()),
            "later_prompts": int((learn & ~rows.first_round).sum()),
            "validation_tau": [round(tau, 4) for tau in tuned.validation_tau],
            "int8_fp32_tau": round(quantised.agreement, 4),
            "int8_fp32_prompts": quantised.compared,
            "fp32_bytes": quantised.fp32_bytes,
            "int8_bytes": len(quantised.graph),
        },
    )


def scores_of(
    encoder: EncoderScore,
    prompts: Sequence[str],
    on_progress: Report = lambda step, done, total: None,
) -> NDArray[np.float32]:
    """What serving would see of each prompt, shape (n, 1); computed on every core there is."""
    found: list[float] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(prompts), _SCORED_AT_ONCE):
            found += pool.map(encoder.score, prompts[start : start + _SCORED_AT_ONCE])
            on_progress("encoder, scores", len(found), len(prompts))
    return np.array(found, np.float32).reshape(-1, 1)


def values_for_trees(
    encoder: EncoderScore,
    rows: Rows,
    learnt_from: NDArray[np.bool_],
    on_progress: Report = lambda step, done, total: None,
) -> NDArray[np.float32]:
    """The encoder's column of the trees' table, shape (n, 1): NaN on what taught it, and on the test side."""
    shown = ((rows.part == TRAIN) & ~learnt_from) | (rows.part == VALIDATION)
    values = np.full((len(rows.prompts), 1), np.nan, np.float32)
    values[shown] = scores_of(encoder, rows.where(shown).prompts, on_progress)
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderTier:
    """``MoreFeatures`` of ``muplan.predictor.training``: an encoder and its score."""

    source: Pretrained
    seed: int
    work: Path
    settings: Settings
    on_progress: Report

    def __call__(self, rows: Rows, table: FeatureTable) -> tuple[FeatureTable, dict[str, Any]]:
        """Raises what ``train_encoder`` raises."""
        made = train_encoder(rows, self.source, self.seed, self.work, self.settings, self.on_progress)
        values = values_for_trees(made.encoder, rows, made.learnt_from, self.on_progress)
        shown = int((np.isfinite(values[:, 0]) & (rows.part == TRAIN)).sum())
        return table.with_group(made.encoder, values), {"encoder": {**made.card, "trees_prompts": shown}}


def work_directory(output: Path) -> Path:
    """Where the training of the predictor in ``output`` keeps its checkpoints until it is written."""
    return output.with_name(output.name + ".encoder")
