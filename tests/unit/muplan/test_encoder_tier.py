"""The encoder and the trees share the train side: what one has seen the other may not be taught by."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from muplan.commands.predictor import command
from muplan.predictor.artefact import Origin, write_predictor
from muplan.predictor.dataset import Exchange, read_exchanges
from muplan.predictor.encoder_tier import scores_of, teaching_rows, values_for_trees, work_directory
from muplan.predictor.feature_table import FeatureTable
from muplan.predictor.rows import TEST, TRAIN, Rows, make_rows
from muplan.predictor.training import train
from muserve.encoder_score import ENCODER_FILE, EncoderScore
from muserve.errors import InputError
from muserve.length_model import CARD_FILE, LengthModel
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


def test_the_trees_see_no_score_of_what_taught_the_encoder(tmp_path: Path) -> None:
    encoder = EncoderScore.load(write_small_encoder(tmp_path))
    _, part = teaching_rows(_ROWS, 1)
    seen = np.isfinite(values_for_trees(encoder, _ROWS, part)[:, 0])
    assert not seen[part].any()
    assert not seen[_ROWS.part == TEST].any()
    assert seen[~part & (_ROWS.part != TEST)].all()


def _chats(count: int) -> list[dict[str, object]]:
    """The answer is long if the prompt says so; the encoder of these tests sees more in it than that."""
    random = np.random.default_rng(1)
    chats: list[dict[str, object]] = []
    for number in range(count):
        kind = str(random.choice(["long", "short"]))
        words = int({"long": 300, "short": 20}[kind] * random.uniform(0.7, 1.4))
        turns = [
            {"from": "human", "value": f"please write a {kind} story {number}"},
            {"from": "gpt", "value": " ".join(["yes"] * words)},
        ]
        chats.append({"id": f"c{number}_0", "conversations": turns})
    return chats


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "chats.json"
    path.write_text(json.dumps(_chats(700)), "utf-8")
    return path


def test_a_predictor_with_an_encoder_is_served_like_any_other(data_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("lightgbm", reason="training needs lightgbm")
    rows = make_rows(read_exchanges(data_file))
    encoder = EncoderScore.load(write_small_encoder(tmp_path / "work"))

    def add_encoder(rows: Rows, table: FeatureTable) -> tuple[FeatureTable, dict[str, object]]:
        _, part = teaching_rows(rows, 1)
        return table.with_group(encoder, values_for_trees(encoder, rows, part)), {}

    trained = train(rows, seed=1, formulation="mse", more_features=add_encoder)
    output = tmp_path / "predictor"
    write_predictor(output, trained, rows, Origin(data="test", command="test", seed=1))
    model = LengthModel.load(output)
    assert model.card["features"]["groups"]["encoder"] == 1
    assert (output / ENCODER_FILE).read_bytes() == (tmp_path / "work" / ENCODER_FILE).read_bytes()
    assert model.predict("please write a long story 5") > 5 * model.predict("please write a short story 5")

    write_small_encoder(output, seed=2)
    with pytest.raises(InputError, match=r"features\.fingerprint is .* train it again"):
        LengthModel.load(output)
    (output / ENCODER_FILE).unlink()
    with pytest.raises(InputError, match=r"encoder\.onnx"):
        LengthModel.load(output)


@pytest.mark.filterwarnings("default")
def test_the_bert_tier_is_trained_by_one_command(data_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="fine-tuning needs torch")
    pytest.importorskip("transformers", reason="fine-tuning needs transformers")
    from small_pretrained import write_small_pretrained

    source, output = write_small_pretrained(tmp_path / "small"), tmp_path / "predictor"
    options = ["--data", str(data_file), "-o", str(output), "--formulation", "mse", "--json"]
    done = CliRunner().invoke(command, ["train", "--tier", "bert", "--encoder", str(source), *options])
    assert done.exit_code == 0, done.output
    card = json.loads((output / CARD_FILE).read_text("utf-8"))
    assert card["encoder"]["pretrained"] == "small"
    assert card["encoder"]["trees_prompts"] < card["data"]["split"]["train"]["prompts"] / 2
    assert len(card["encoder"]["validation_tau"]) == 1
    assert "--tier bert" in card["command"]
    assert "fine-tuned on" in (output / "MODEL_CARD.md").read_text("utf-8")
    assert card["metrics"]["single"]["kendall_tau"] > 0.4
    assert LengthModel.load(output).predict("please write a long story 5") > 150.0
    assert not work_directory(output).exists()


def test_encoder_options_need_the_bert_tier(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, ["train", "--encoder", "minilm", "-o", str(tmp_path / "new")])
    assert isinstance(done.exception, InputError)
    assert "expected --tier bert" in str(done.exception)


def test_a_missing_torch_is_one_sentence(tmp_path: Path) -> None:
    if find_spec("torch") is not None:
        pytest.skip("torch is installed")
    done = CliRunner().invoke(command, ["train", "--tier", "bert", "-o", str(tmp_path / "new")])
    assert isinstance(done.exception, InputError)
    assert 'pip install "muserve[train]"' in str(done.exception)
    assert list(tmp_path.iterdir()) == []
