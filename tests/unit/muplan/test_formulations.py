"""Every formulation gives an expected length, the same in LightGBM and in the graph that is served."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from muplan.commands.predictor import command
from muplan.commands.predictor_options import FORMULATION_NAMES
from muplan.predictor.boosting import Fitted, Lesson, Side, class_means
from muplan.predictor.comparison import BASELINES, compare
from muplan.predictor.evaluation import judge, normalised_gini
from muplan.predictor.feature_table import FeatureTable, build_feature_table, queries, tokens_per_piece
from muplan.predictor.formulations import FORMULATIONS
from muplan.predictor.pairwise import FittedPairs
from muplan.predictor.plots import confusion, reliability
from muplan.predictor.portable import CARD_KEY, NAMES_KEY
from muplan.predictor.rows import TEST, TRAIN, Rows
from muplan.predictor.training import lesson_of, resplit, train
from muplan.predictor.trees_onnx import trees_to_onnx
from muserve.errors import InputError
from muserve.feature_groups import ServedModels
from muserve.length_model import LengthModel
from muserve.length_query import LengthQuery, count_tokens

SERVABLE = tuple(name for name in FORMULATIONS if name != "pairwise")


def side(random_: np.random.Generator, rows: int) -> Side:
    inputs = np.round(random_.normal(size=(rows, 5)), 2).astype(np.float32)  # many values sit on thresholds
    median = np.exp(4.5 + 0.7 * inputs[:, 0] + 0.3 * np.abs(inputs[:, 1]))
    tokens = np.clip(np.round(median * random_.lognormal(0.0, 0.4, rows)), 2, 1024)
    return Side(inputs=inputs, tokens=tokens.astype(np.float64), weight=np.ones(rows))


@pytest.fixture(scope="module")
def lesson() -> Lesson:
    random_ = np.random.default_rng(5)
    return Lesson(learn=side(random_, 2500), check=side(random_, 800), seed=3)


@pytest.fixture(scope="module")
def test_side() -> Side:
    return side(np.random.default_rng(6), 1500)


def test_the_command_offers_exactly_what_there_is() -> None:
    assert set(FORMULATION_NAMES) == set(FORMULATIONS)


@pytest.fixture(scope="module")
def fitted_pairs(lesson: Lesson) -> Fitted:
    return FORMULATIONS["pairwise"].fit(lesson)


@pytest.mark.parametrize("name", FORMULATIONS)
def test_schedules_by_an_expected_length(
    name: str, lesson: Lesson, fitted_pairs: Fitted, test_side: Side
) -> None:
    fitted = fitted_pairs if name == "pairwise" else FORMULATIONS[name].fit(lesson)
    expected = fitted.expected_tokens(test_side.inputs)
    assert normalised_gini(test_side.tokens, expected) > 0.7
    assert expected.mean() == pytest.approx(test_side.tokens.mean(), rel=0.12)  # an expectation, not a median
    assert len(np.unique(expected)) > 100  # not the arg-max of a few classes
    if name == "pairwise":
        with pytest.raises(InputError, match="cannot be exported"):
            fitted.tree_heads()
        return
    import onnxruntime

    model = trees_to_onnx(fitted.tree_heads(), 5, 1024.0)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (tokens,) = session.run(None, {"features": test_side.inputs})
    np.testing.assert_allclose(tokens, np.clip(expected, 1, 1024), rtol=2e-3)


def test_pairwise_verdicts_need_not_be_transitive(fitted_pairs: Fitted, test_side: Side) -> None:
    pairs = fitted_pairs
    assert isinstance(pairs, FittedPairs)
    assert 0.0 <= pairs.intransitive_share(test_side.inputs, seed=1) < 0.25
    rock, paper, scissors = np.eye(3, dtype=np.float32)

    class Circle:
        def predict(self, inputs: np.ndarray) -> np.ndarray:
            one, other = inputs[:, :3].argmax(axis=1), inputs[:, 3:].argmax(axis=1)
            return ((one - other) % 3 == 1).astype(np.float64)

    circle = FittedPairs(Circle(), np.array([rock]))
    assert circle.intransitive_share(np.array([rock, paper, scissors]), seed=0) == 1.0


def test_quantiles_come_out_of_the_graph(lesson: Lesson, test_side: Side) -> None:
    import onnxruntime

    fitted = FORMULATIONS["quantile"].fit(lesson)
    model = trees_to_onnx(fitted.tree_heads(), 5, 1024.0, "quantiles")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (values,) = session.run(["quantiles"], {"features": test_side.inputs})
    below = (test_side.tokens[:, np.newaxis] <= values).mean(axis=0)
    assert below == pytest.approx([0.5, 0.9], abs=0.05)


def test_class_means_of_an_empty_class_are_the_overall_mean() -> None:
    assert class_means(np.array([1.0, 2.0, 30.0]), np.array([10.0, 20.0])).tolist() == [1.5, 11.0, 30.0]


def chats(models: tuple[str, ...], count: int = 1200) -> Rows:
    """Prompts of two kinds, several rounds; the later a model is in ``models``, the longer it answers."""
    random_ = np.random.default_rng(4)
    kind = random_.integers(0, 2, count)
    model = random_.integers(0, len(models), count)
    style = random_.lognormal(0.0, 0.5, count)
    rounds = random_.integers(0, 3, count)
    base = np.where(kind == 1, 200.0, 30.0) * (1.0 + 2.0 * model) * style
    tokens = np.clip(np.round(base * random_.lognormal(0.0, 0.15, count)), 2, 1024)
    said = ("Why is it so?", "steam " * 30)
    return Rows(
        prompts=tuple(
            f"{'Write an essay' if k else 'Name one'} about topic {n % 7}" for n, k in enumerate(kind)
        ),
        tokens=tokens,
        censored=np.zeros(count, np.bool_),
        group=np.arange(count),
        part=random_.choice(3, count, p=(0.7, 0.1, 0.2)),
        first_round=rounds == 0,
        round=rounds,
        history=tuple(said * int(before) for before in rounds),
        history_answer_tokens=tuple((round(float(b)),) * int(n) for b, n in zip(base, rounds, strict=True)),
        served_model=tuple(models[place] for place in model),
    )


def test_one_predictor_for_two_llms_that_differ_in_length() -> None:
    import onnxruntime

    rows = chats(("brief-7b", "lengthy-70b"))
    trained = train(rows, seed=1, formulation="mse")
    session = onnxruntime.InferenceSession(
        trained.model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    model = LengthModel(groups=trained.groups, session=session, card={})
    asked = ["Write an essay about topic 3", "Name one about topic 5"]
    brief, lengthy, unknown = (
        model.predict_many([LengthQuery(prompt=prompt, served_model=name) for prompt in asked])
        for name in ("brief-7b", "lengthy-70b", "another")
    )
    assert (lengthy > 2 * brief).all()
    assert np.isfinite(unknown).all()
    assert model.predict(asked[0], "lengthy-70b") == pytest.approx(lengthy[0])


def test_another_tokenizers_counts_of_earlier_answers_become_pieces() -> None:
    rows = chats(("only-one",), 300)
    said = tuple(history[-1] if history else "" for history in rows.history)
    pieces = tuple((count_tokens(answer),) if answer else () for answer in said)
    doubled = replace(rows, history_answer_tokens=tuple(tuple(2 * n for n in counts) for counts in pieces))
    assert tokens_per_piece(doubled) == 2.0
    assert [query.history_answer_tokens for query in queries(doubled)] == list(pieces)
    assert tokens_per_piece(replace(doubled, history=((),) * 300)) == 1.0


def test_a_single_served_model_is_no_feature() -> None:
    table = build_feature_table(chats(("only-one",), 300), lambda step: None)
    assert not any(isinstance(group, ServedModels) for group in table.groups)
    assert table.inputs.shape[1] == sum(len(group.names) for group in table.groups)


def test_history_lengths_help_where_conversations_have_a_style() -> None:
    rows = chats(("only-one",))
    table = build_feature_table(rows, lambda step: None)
    later = (rows.part == TEST) & ~rows.first_round
    edges = np.percentile(rows.tokens[rows.part == TRAIN], (25, 50, 75, 99))
    taus = []
    for groups in (("prompt", "text_score"), ("prompt", "history", "text_score")):
        fitted = FORMULATIONS["mse"].fit(lesson_of(rows, table, 1, *groups))
        predicted = fitted.expected_tokens(table.columns(*groups)[later])
        taus.append(judge(rows.tokens[later], predicted, edges).kendall_tau)
    assert taus[1] > taus[0] + 0.15


def test_the_table_takes_one_more_group() -> None:
    table = FeatureTable(inputs=np.zeros((4, 2), np.float32), groups=(ServedModels(("a", "b")),))
    more = table.with_group(ServedModels(("c",)), np.ones((4, 1), np.float32))
    assert more.inputs.shape == (4, 3)
    assert [group.names for group in more.groups][1] == ("served_model_c",)


def test_another_seed_splits_anew_and_keeps_groups_together() -> None:
    rows = chats(("only-one",), 600)
    assert resplit(rows, 0) is rows
    moved = resplit(rows, 7)
    assert (moved.part != rows.part).mean() > 0.2
    assert (resplit(rows, 7).part == moved.part).all()
    assert [float((moved.part == part).mean()) for part in range(3)] == pytest.approx(
        [0.7, 0.1, 0.2], abs=0.07
    )


def test_compares_with_the_baselines() -> None:
    figures = compare(chats(("only-one",)), ("mse",), (0,), lambda step: None)
    assert list(figures) == [*BASELINES, "mse"]
    tau = {name: sides["multi"]["kendall_tau"]["mean"] for name, sides in figures.items()}
    assert tau["constant"] == 0.0
    assert tau["mse"] > tau["prompt length"] + 0.05
    assert tau["prompt and history lengths"] > tau["prompt length"]
    assert all(sides["single"]["kendall_tau"]["spread"] == 0.0 for sides in figures.values())  # one seed


def test_pictures_are_drawn_from_right_figures() -> None:
    tokens, edges = np.array([1.0, 5.0, 9.0, 9.0]), np.array([4.0, 8.0])
    assert confusion(tokens, np.array([1.0, 9.0, 9.0, 1.0]), edges).tolist() == [
        [1, 0, 0],
        [0, 0, 1],
        [1, 0, 1],
    ]
    expected, observed = reliability(tokens, np.array([2.0, 1.0, 4.0, 3.0]), bins=2)
    assert expected.tolist() == [1.5, 3.5]
    assert observed.tolist() == [3.0, 9.0]


@pytest.fixture(scope="module")
def chats_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random_ = random.Random(2)
    path = tmp_path_factory.mktemp("chats") / "chats.json"
    objects = []
    for number in range(400):
        turns = []
        words = random_.choice((5, 40, 300))
        for _ in range(random_.choice((1, 2, 3))):
            turns.append({"from": "human", "value": f"Tell me about {random_.randrange(10_000)}"})
            turns.append({"from": "gpt", "value": "steam " * int(words * random_.uniform(0.8, 1.25))})
        objects.append({"id": f"c{number}_0", "conversations": turns})
    path.write_text(json.dumps(objects), "utf-8")
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_from_training_to_one_portable_file(chats_file: Path, tmp_path: Path) -> None:
    import onnxruntime

    pytest.importorskip("matplotlib")
    directory, file, plots = tmp_path / "own", tmp_path / "out" / "own.onnx", tmp_path / "plots"
    trained = json.loads(
        run("train", "--data", chats_file, "-o", directory, "--formulation", "quantile", "--json")
    )
    shown = run("evaluate", directory, "--data", chats_file, "--plots", plots)
    assert "five_class_f1" in shown
    assert "chat_cpu_p99_ms" in shown
    assert trained["share_below_quantile"]["p90"] > trained["share_below_quantile"]["p50"]
    pictures = {path.name for path in plots.iterdir()}
    assert pictures == {f"{s}_{k}.png" for s in ("single", "multi") for k in ("reliability", "confusion")}
    assert json.loads(run("export", directory, "-o", file, "--json"))["largest_difference_tokens"] < 0.01
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata[CARD_KEY])["training"]["formulation"] == "quantile"
    assert len(json.loads(metadata[NAMES_KEY])) == session.get_inputs()[0].shape[1]
    assert [path.name for path in file.parent.iterdir()] == ["own.onnx"]


def test_pairwise_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be served"):
        run("train", "--data", tmp_path / "none.json", "-o", tmp_path / "own", "--formulation", "pairwise")
    assert not (tmp_path / "own").exists()


def test_compare_prints_mean_and_spread(chats_file: Path) -> None:
    table = run("compare", "--data", chats_file, "--formulation", "pairwise", "--seeds", "1")
    assert "captured" in table
    assert "(0.000)" in table
    assert "beat one another in a circle" in table
