"""The encoder and the trees share the train side: what one has seen the other may not be taught by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muplan.predictor.dataset import Exchange
from muplan.predictor.encoder_tier import scores_of, teaching_rows
from muplan.predictor.rows import TRAIN, Rows, make_rows
from muserve.encoder_score import EncoderScore
from small_encoder import write_small_encoder


def _rows(conversations: int, rounds: int) -> Rows:
    return make_rows(
        Exchange(
            conversation=f"c{number}",
            opening=f"question {number}",
            first_round=turn == 0,
            round=turn,
            history=("", "") * turn,
            history_answer_tokens=(5,) * turn,
            served_model="",
            prompt=f"question {number} {turn}",
            answer="an answer",
            answer_tokens=10 + number % 7,
            censored=False,
        )
        for number in range(conversations)
        for turn in range(rounds)
    )


_ROWS = _rows(200, 3)


@given(st.integers(0, 1_000), st.integers(0, 500))
def test_no_conversation_teaches_both_the_encoder_and_the_trees(seed: int, most: int) -> None:
    learn, part = teaching_rows(_ROWS, seed, most)
    train = _ROWS.part == TRAIN
    assert not (learn & ~part).any()
    assert not (part & ~train).any()
    assert not set(_ROWS.group[part]) & set(_ROWS.group[train & ~part])
    assert (learn & _ROWS.first_round).sum() == (part & _ROWS.first_round).sum()
    assert learn.sum() == min(part.sum(), max(most, (part & _ROWS.first_round).sum()))
    assert part.sum() == pytest.approx(0.6 * train.sum(), abs=3)


def test_the_parting_follows_the_seed() -> None:
    first, again, other = (teaching_rows(_ROWS, seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_many_prompts_score_as_each_alone(tmp_path: Path) -> None:
    encoder = EncoderScore.load(write_small_encoder(tmp_path))
    prompts = [f"write {'long ' * number} story" for number in range(600)]
    calls: list[tuple[int, int]] = []
    found = scores_of(encoder, prompts, lambda step, done, total: calls.append((done, total)))
    assert found[:, 0].tolist() == [np.float32(encoder.score(prompt)) for prompt in prompts]
    assert calls == [(256, 600), (512, 600), (600, 600)]
    assert scores_of(encoder, []).shape == (0, 1)
