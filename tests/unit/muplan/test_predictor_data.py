"""Chat data become labelled examples: formats, labels, cleaning, history, split, and nothing leaks."""

from __future__ import annotations

import gzip
import json
import random
import re
import sys
import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from muplan.commands.predictor import command
from muplan.predictor.censoring import expected_tokens
from muplan.predictor.chat_formats import recognise
from muplan.predictor.cleaning import CLEANINGS
from muplan.predictor.dataset import Exchange, exchanges_of, read_exchanges
from muplan.predictor.json_objects import objects
from muplan.predictor.labels import load_token_counter
from muplan.predictor.prepared import Preparation, read_preparation, read_prepared, write_prepared
from muplan.predictor.published import CLASS_EDGES, FILE, PublishedRows, judge_published, read_published
from muplan.predictor.rows import TEST, Rows, make_rows, read_rows
from muserve.errors import InputError
from muserve.history_text import bounded_history
from muserve.token_pieces import pieces

DOCUMENT = Path(__file__).parents[3] / "docs" / "length-prediction.md"
LMSYS = Path(__file__).parents[4] / "shared/data/lmsys"
WORDS = ("steam", "rail", "bridge", "signal", "coal", "wheel")


def exchanges(value: object) -> list[Exchange]:
    recorded = recognise(value)
    assert recorded is not None
    return list(exchanges_of(recorded))


def chat(*turns: str, **fields: object) -> dict[str, Any]:
    """A conversation of ``turns`` by human and assistant in turn."""
    roles = ("human", "gpt")
    return {**fields, "conversations": [{"from": roles[n % 2], "value": t} for n, t in enumerate(turns)]}


def some_chats(number: int, seed: int = 1, rounds: tuple[int, ...] = (1, 1, 3)) -> list[dict[str, Any]]:
    random_ = random.Random(seed)
    chats = []
    for name in range(number):
        turns: list[str] = []
        for _ in range(random_.choice(rounds)):
            turns.append(f"Write on {random_.choice(WORDS)} number {random_.randrange(9999)}")
            turns.append(" ".join(random_.choices(WORDS, k=random_.choice((1, 5, 40, 200, 700, 1400)))))
        chats.append(chat(*turns, id=f"c{name}_0"))
    return chats


def written(path: Path, values: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(value) for value in values), "utf-8")
    return path


def prepare(*arguments: object) -> dict[str, Any]:
    words = ["prepare", *map(str, arguments), "--json"]
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


# Formats


def test_every_documented_example_is_read_as_the_document_says() -> None:
    blocks = re.findall(r"```json\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)
    documented = [json.loads(block) for block in blocks if block.count("\n") == 1]
    assert len(documented) == 4
    for value in documented:
        (exchange,) = exchanges(value)
        assert exchange.prompt == "Name a river."
        assert exchange.answer == "The Rhine is a river in Europe."
        assert exchange.answer_tokens in (len(pieces(exchange.answer)), 9)
        assert (exchange.first_round, exchange.round, exchange.censored) == (True, 0, False)
    assert [exchanges(value)[0].served_model for value in documented] == [
        "",
        "vicuna-13b",
        "opt-1.3b",
        "opt-1.3b",
    ]


def test_rounds_know_the_turns_and_the_answers_before() -> None:
    one, two, three = exchanges(chat("a b", "c d e", "f", "g", "h", "i j", id="x_0"))
    assert (one.history, one.history_answer_tokens, one.round) == ((), (), 0)
    assert (two.history, two.history_answer_tokens, two.round) == (("a b", "c d e"), (3,), 1)
    assert (three.history, three.history_answer_tokens) == (("a b", "c d e", "f", "g"), (3, 1))
    assert [e.first_round for e in (one, two, three)] == [True, False, False]
    assert one.opening == two.opening == three.opening != ""


def test_a_long_chat_remembers_eight_answers_and_bounded_text() -> None:
    turns = [f"{n} " * 500 for n in range(60)]
    *_, last = exchanges(chat(*turns))
    assert last.history_answer_tokens == tuple(len(pieces(t)) for t in turns[1:58:2][-8:])
    assert sum(map(len, last.history)) <= 1024 + 4096 + 1


def test_a_later_piece_starts_with_what_it_has_and_its_number_means_nothing() -> None:
    turns = [{"from": "gpt", "value": "end of it"}, *chat("go on", "on it goes")["conversations"]]
    piece = {"conversations": turns}
    (found,) = exchanges({"id": "abc_3", **piece})
    assert (found.history, found.history_answer_tokens, found.round) == (("", "end of it"), (3,), 1)
    assert (found.conversation, found.opening, found.first_round) == ("abc", "", False)
    assert exchanges({"id": "abc_17", **piece}) == [found]
    assert [e.first_round for e in exchanges(chat("a", "b", id="abc_1"))] == [False]


@pytest.mark.parametrize(
    ("turns", "found"),
    [
        ([("system", "be kind"), ("user", "a"), ("assistant", "b")], [("a", "b", True)]),
        ([("user", "a"), ("user", "b"), ("assistant", "c")], [("a\nb", "c", True)]),
        ([("user", "a"), ("assistant", "b"), ("assistant", "c")], [("a", "b\nc", True)]),
        ([("user", "a"), ("tool", "?"), ("assistant", "b")], []),
        ([("assistant", "hello"), ("user", "a"), ("assistant", "b")], [("a", "b", False)]),
        ([("user", "a")], []),
        ([], []),
    ],
)
def test_turns_that_do_not_alternate(turns: list[tuple[str, str]], found: list[object]) -> None:
    value = {"messages": [{"role": role, "content": content} for role, content in turns]}
    assert [(e.prompt, e.answer, e.first_round) for e in exchanges(value)] == found


def openai(finish_reason: object = "stop", tokens: int | None = 7, limit: int | None = 64) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": "one two"},
        {"role": "assistant", "content": "three four five"},
        {"role": "user", "content": [{"type": "text", "text": "six"}, {"type": "image_url"}]},
    ]
    choice = {"message": {"content": "seven"}, "finish_reason": finish_reason}
    response: dict[str, Any] = {"choices": [choice]}
    response |= {} if tokens is None else {"usage": {"completion_tokens": tokens}}
    return {"request": {"model": "m", "messages": messages, "max_tokens": limit}, "response": response}


def test_a_logged_request_is_one_exchange_with_its_history() -> None:
    (found,) = exchanges(openai())
    assert (found.prompt, found.answer, found.answer_tokens) == ("six\n", "seven", 7)
    assert (found.history, found.history_answer_tokens) == (("one two", "three four five"), (3,))
    assert (found.served_model, found.round, found.first_round, found.censored) == ("m", 1, False, False)
    flat = {**openai()["request"], **openai()["response"]}
    nested = {key: {"body": value} for key, value in openai().items()}
    half_flat = {**openai()["request"], "response": openai()["response"]}
    for other in (flat, nested, half_flat):
        assert exchanges(other) == [found], other
    (counted,) = exchanges(openai(tokens=None))
    assert counted.answer_tokens == 1


@pytest.mark.parametrize(
    ("finish_reason", "tokens", "limit", "cut"),
    [
        ("stop", 64, 64, False),
        ("length", 7, 64, True),
        ("abort", 7, None, True),
        ("tool_calls", 7, 64, False),
        (None, 64, 64, True),
        (None, 63, 64, False),
        (None, None, 64, False),
    ],
)
def test_answers_cut_by_a_limit_are_lower_bounds(
    finish_reason: str | None, tokens: int | None, limit: int | None, cut: bool
) -> None:
    assert exchanges(openai(finish_reason, tokens, limit))[0].censored is cut
    line = {"prompt": "a", "output": "b", "output_tokens": tokens, "max_tokens": limit}
    assert exchanges({**line, "finish_reason": finish_reason})[0].censored is cut


def test_a_request_log_may_have_lengths_alone() -> None:
    (found,) = exchanges({"prompt": "a", "output_tokens": 12, "conversation_id": "k"})
    assert (found.answer, found.answer_tokens, found.conversation) == ("", 12, "k")
    for nothing in ({"prompt": "a", "output": None}, {"output": "b"}, {"prompt": "a", "output_tokens": -1}):
        assert recognise(nothing) is None


def test_requests_without_an_id_are_grouped_by_their_opening() -> None:
    one, other = ({"prompt": text, "output_tokens": 3} for text in ("Name  a RIVER ", "name a river"))
    assert exchanges(one)[0].conversation == exchanges(other)[0].conversation


KEYS = (
    "conversations", "conversation", "messages", "from", "role", "value", "content", "id", "prompt",
    "output", "output_tokens", "request", "response", "choices", "usage", "message", "body", "model",
)  # fmt: skip
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(KEYS), JSON_VALUES, max_size=6))
def test_no_json_breaks_the_reader(value: dict[str, Any]) -> None:
    recorded = recognise(value)
    for exchange in exchanges_of(recorded) if recorded is not None else ():
        assert exchange.answer_tokens >= 0


# Files


@given(cuts=st.lists(st.integers(0, 400), max_size=6), array=st.booleans())
def test_objects_do_not_depend_on_where_chunks_end(cuts: list[int], array: bool) -> None:
    values = [{"a": ["\\", '"', "]", 1.5e3, None, True]}, {}, {"ü": {"b": "{\n"}}]
    text = json.dumps(values, indent=1) if array else "\n".join(map(json.dumps, values))
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    chunks = [text[a:b] for a, b in pairwise(places)]
    assert list(objects(chunks, "f")) == values


def test_damaged_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    good = [json.dumps(c) for c in some_chats(30, rounds=(1,))]
    bad = [
        good[0][:50],
        "Traceback (most recent call last):",
        '{"a": }',
        good[1] + "}",
        good[2][: len(good[2]) // 2],
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(line for pair in zip(good, bad * 6, strict=True) for line in pair), "utf-8")
    skipped: dict[str, int] = {}
    found = list(read_exchanges(path, on_skipped=skipped.update))
    assert len(found) == 30
    assert sum(skipped.values()) >= 25
    assert set(skipped) <= {"damaged object or line", "incomplete last object"}


def test_gzip_is_read_alike_and_a_cut_one_is_one_sentence(tmp_path: Path) -> None:
    plain = written(tmp_path / "chats.jsonl", some_chats(200))
    packed = tmp_path / "chats"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert list(read_exchanges(packed)) == list(read_exchanges(plain))
    packed.write_bytes(packed.read_bytes()[:-2000])
    with pytest.raises(InputError, match="chats: cannot be read"):
        list(read_exchanges(packed))


def lmsys(number: int) -> list[dict[str, Any]]:
    return [
        {
            "conversation_id": f"{n:032x}",
            "model": ("vicuna-13b", "koala-13b")[n % 2],
            "conversation": [
                {"role": "user", "content": f"question {n}"},
                {"role": "assistant", "content": "answer " * (n % 40 + 1)},
            ],
            "turn": 1,
            "language": "English",
            "openai_moderation": [{"flagged": False}],
            "redacted": False,
        }
        for n in range(number)
    ]


def test_parquet_rows_are_the_json_lines(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="reading Parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = lmsys(700)
    path = tmp_path / "train-00000-of-00006"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=300)
    seen: list[tuple[int, int]] = []
    found = list(read_exchanges(path, lambda done, total: seen.append((done, total))))
    assert found == list(read_exchanges(written(tmp_path / "rows.jsonl", rows)))
    assert len(found) == 700
    assert len(seen) == 3
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a Parquet file"):
        list(read_exchanges(path))


def test_parquet_without_pyarrow_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 and so on")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r'pip install "muserve\[parquet\]"'):
        list(read_exchanges(path))


def _peak_bytes(source: Path, output: Path) -> int:
    tracemalloc.start()
    try:
        write_prepared(output, read_exchanges(source), Preparation(history="none"))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("one_array", [False, True])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, one_array: bool) -> None:
    peaks = []
    for megabytes in (3, 10):
        line = json.dumps(chat(*["word " * 2000, "=" * 3000] * 2)) + (",\n" if one_array else "\n")
        source = tmp_path / f"{megabytes}"
        with source.open("w", encoding="utf-8") as file:
            file.write("[" * one_array)
            for _ in range(megabytes * 1_000_000 // len(line)):
                file.write(line)
        peaks.append(_peak_bytes(source, tmp_path / "out"))
    assert peaks[1] < peaks[0] * 1.2
    assert peaks[1] < 10_000_000


# Labels


def test_labels_are_counted_by_the_served_llms_tokenizer(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "rail": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        counter = load_token_counter(path)
        assert counter.count("rail and steam and rail") == 5
        assert "tokenizer.json sha256:" in counter.name
    data = written(tmp_path / "d.jsonl", [chat("a", "supercalifragilistic expialidocious", "b", "c d e")])
    prepare(data, "-o", tmp_path / "out", "--tokenizer", tmp_path)
    one, two = read_prepared(tmp_path / "out")
    assert (one.answer_tokens, two.answer_tokens, two.history_answer_tokens) == (2, 3, (2,))
    preparation = read_preparation(tmp_path / "out")
    assert preparation is not None
    assert preparation.tokenizer == load_token_counter(tmp_path).name


def test_a_wrong_tokenizer_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="directory that holds one"):
        load_token_counter(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", "utf-8")
    with pytest.raises(InputError, match="not a Hugging Face tokenizer"):
        load_token_counter(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r'pip install "muserve\[serve\]"'):
        load_token_counter(tmp_path)


# Cleaning


@pytest.mark.parametrize(
    ("clean", "kept", "censored"),
    [
        ("default", [2, 511, 512, 1024], 0),
        ("paper", [2, 511], 0),
        ("censored", [2, 511, 512, 1024, 1025, 300], 1),
    ],
)
def test_cleaning_keeps_and_counts(tmp_path: Path, clean: str, kept: list[int], censored: int) -> None:
    lengths = [0, 1, 2, 511, 512, 1024, 1025]
    lines: list[dict[str, object]] = [{"prompt": f"p{n}", "output_tokens": n} for n in lengths]
    lines.append({"prompt": "cut", "output_tokens": 300, "finish_reason": "length"})
    data = written(tmp_path / "log.jsonl", lines)
    figures = prepare(data, "-o", tmp_path / "out", "--clean", clean)
    found = list(read_prepared(tmp_path / "out"))
    assert [e.answer_tokens for e in found] == kept
    assert [e.censored for e in found].count(True) == censored == figures["censored"]
    assert figures["read"] == len(lines) == figures["kept"] + sum(figures["dropped"].values())
    assert figures["dropped"]["empty answer"] == figures["dropped"]["answer shorter than 2 tokens"] == 1
    assert ("answer cut by a limit" in figures["dropped"]) == (clean != "censored")


@given(
    tokens=st.integers(0, 3000),
    cut=st.booleans(),
    limit=st.none() | st.integers(1, 2000),
    name=st.sampled_from(sorted(CLEANINGS)),
)
def test_a_kept_label_obeys_its_rule(tokens: int, cut: bool, limit: int | None, name: str) -> None:
    rule = replace(CLEANINGS[name], limit_tokens=limit)
    (exchange,) = exchanges({"prompt": "p", "output_tokens": tokens})
    found, complaint = rule.apply(replace(exchange, censored=cut))
    assert found.censored == (cut or (limit is not None and tokens >= limit))
    right = tokens >= 2 and (rule.longest_tokens is None or tokens <= rule.longest_tokens)
    assert (complaint is None) == (right and (rule.keeps_cut or not found.censored))


def test_expected_lengths_undo_the_bias_of_cut_answers() -> None:
    random_ = np.random.default_rng(2)
    true = np.ceil(random_.gamma(2.0, 120.0, 20_000))
    limit = random_.choice([100.0, 300.0, 5000.0], len(true))
    seen, cut = np.minimum(true, limit), true > limit
    completed = expected_tokens(seen, cut, np.ones(len(true), np.bool_))
    assert seen.mean() < 0.75 * true.mean()
    assert completed.mean() == pytest.approx(true.mean(), rel=0.02)
    for at in (100.0, 300.0):
        chosen = cut & (limit == at)
        assert completed[chosen].mean() == pytest.approx(true[chosen].mean(), rel=0.04)


def test_expected_lengths_by_hand() -> None:
    tokens, cut = np.array([10.0, 20.0, 20.0, 40.0, 15.0, 50.0]), np.array([0, 1, 0, 0, 1, 1], np.bool_)
    known = np.array([1, 1, 1, 1, 0, 0], np.bool_)
    # Longer than 10: 3/4; than 20: 3/4 * 2/3 = 1/2; than 40: 0.
    expected = [10.0, 40.0, 20.0, 40.0, 15.0 + (5.0 * 0.75 + 20.0 * 0.5) / 0.75, 50.0]
    assert expected_tokens(tokens, cut, known) == pytest.approx(expected)
    assert expected_tokens(tokens, cut, np.zeros(6, np.bool_)).tolist() == tokens.tolist()


@given(st.lists(st.tuples(st.integers(0, 60), st.booleans(), st.booleans()), max_size=40))
def test_expected_lengths_never_shrink_and_leave_known_ones_alone(rows: list[tuple[int, bool, bool]]) -> None:
    columns = np.array(rows, np.float64).reshape(-1, 3).T
    tokens, cut, known = columns[0], columns[1] > 0, columns[2] > 0
    completed = expected_tokens(tokens, cut, known)
    assert (completed >= tokens).all()
    assert (completed[~cut] == tokens[~cut]).all()
    longest = tokens[known].max(initial=0.0)
    assert (completed[cut] <= np.maximum(tokens[cut], longest) + 1e-6).all()


def test_only_the_sides_that_teach_get_expected_lengths(tmp_path: Path) -> None:
    lines: list[dict[str, object]] = [
        {"prompt": f"p{n}", "output_tokens": 50 + n % 7, "finish_reason": ("stop", "length")[n % 2]}
        for n in range(400)
    ]
    prepare(written(tmp_path / "log.jsonl", lines), "-o", tmp_path / "out", "--clean", "censored")
    rows = read_rows(tmp_path / "out")
    seen = np.array([50 + int(prompt[1:]) % 7 for prompt in rows.prompts])
    more = rows.tokens > seen
    assert not more[(rows.part == TEST) | ~rows.censored].any()
    assert more[(rows.part != TEST) & rows.censored & (seen < 56)].all()


def test_a_limit_and_a_model_can_be_told(tmp_path: Path) -> None:
    data = written(tmp_path / "lmsys.jsonl", lmsys(80))
    arguments = (
        data,
        "-o",
        tmp_path / "out",
        "--clean",
        "censored",
        "--max-tokens",
        30,
        "--model",
        "vicuna-13b",
    )
    figures = prepare(*arguments)
    assert figures["dropped"]["answered by another LLM"] == 40
    found = list(read_prepared(tmp_path / "out"))
    assert {e.served_model for e in found} == {"vicuna-13b"}
    assert all(e.censored == (e.answer_tokens >= 30) for e in found)
    assert any(e.censored for e in found)


def test_the_table_says_what_was_dropped_and_why(tmp_path: Path) -> None:
    data = written(tmp_path / "chats.jsonl", [*some_chats(60), {"no": "chat"}])
    words = ["prepare", str(data), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(command, words, catch_exceptions=False)
    for expected in (
        "dropped: answer longer than 1024 tokens",
        "kept",
        "skipped: object without a conversation",
    ):
        assert expected in result.stdout


# Prepared files


def test_prepared_data_give_the_rows_of_the_raw_data(tmp_path: Path) -> None:
    data = written(tmp_path / "chats.jsonl", some_chats(300))
    raw = make_rows(read_exchanges(data))
    contents = []
    for name in ("one.jsonl", "two.jsonl.gz", "three.jsonl.gz"):
        prepare(data, "-o", tmp_path / name)
        rows = read_rows(tmp_path / name)
        assert rows.prompts == raw.prompts
        for column in ("tokens", "part", "group", "first_round", "round", "censored"):
            np.testing.assert_array_equal(getattr(rows, column), getattr(raw, column))
        assert rows.history_answer_tokens == raw.history_answer_tokens
        assert rows.history == tuple(bounded_history(history) for history in raw.history)
        assert rows.preparation.inputs == ("chats.jsonl",)
        contents.append((tmp_path / name).read_bytes())
    assert contents[1] == contents[2]
    assert gzip.decompress(contents[1]) == contents[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "chats.jsonl",
        "one.jsonl",
        "three.jsonl.gz",
        "two.jsonl.gz",
    ]


@pytest.mark.parametrize("mode", ["head-tail", "tail", "none"])
def test_histories_are_cut_as_asked(tmp_path: Path, mode: str) -> None:
    data = written(tmp_path / "long.jsonl", [chat(*[f"word{n} " * 300 for n in range(6)])])
    prepare(data, "-o", tmp_path / "out", "--history", mode)
    *_, last = read_prepared(tmp_path / "out")
    text = "".join(last.history)
    assert text.startswith("word0 ") == (mode == "head-tail")
    assert text.endswith("word3 ") == (mode != "none")
    assert last.history_answer_tokens == (len(pieces("word1 " * 300)), len(pieces("word3 " * 300)))


def test_evaluate_takes_raw_and_prepared_data_alike(tmp_path: Path) -> None:
    data = written(tmp_path / "chats.jsonl", some_chats(120, rounds=(1,)))
    prepare(data, "-o", tmp_path / "prepared.gz")
    figures = []
    for name in ("chats.jsonl", "prepared.gz"):
        words = ["evaluate", "--data", str(tmp_path / name), "--json"]
        result = CliRunner().invoke(command, words, catch_exceptions=False)
        figures.append(json.loads(result.stdout)["single"])
    assert figures[0] == figures[1]


def test_the_card_of_a_predictor_says_how_its_data_were_prepared(tmp_path: Path) -> None:
    lines = [{"prompt": f"{n} lines on {WORDS[n % 6]}", "output_tokens": 3 + n % 90} for n in range(600)]
    data = written(tmp_path / "log.jsonl", lines)
    prepare(data, "-o", tmp_path / "out", "--clean", "censored", "--max-tokens", 80)
    words = ["train", "--data", str(tmp_path / "out"), "-o", str(tmp_path / "predictor")]
    assert CliRunner().invoke(command, words, catch_exceptions=False).exit_code == 0
    card = (tmp_path / "predictor" / "MODEL_CARD.md").read_text("utf-8")
    assert "answers of 2 or more tokens, cut ones as censored" in card
    assert "Token unit: `muserve.token_pieces`, the one that the replay engine streams" in card


def test_nothing_half_written_and_nothing_lost(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.write_text("years of work", "utf-8")
    empty = written(tmp_path / "empty.jsonl", [{"prompt": "a", "output": ""}])
    good = written(tmp_path / "good.jsonl", some_chats(9))
    packed = tmp_path / "cut.gz"
    packed.write_bytes(gzip.compress(good.read_bytes())[:-20])
    for inputs, sentence in (
        ([empty], "no answer is left"),
        ([good, packed], "cannot be read"),
        ([good, tmp_path / "none"], "No such file"),
    ):
        with pytest.raises(InputError, match=sentence):
            prepare(*inputs, "-o", output)
        assert output.read_text("utf-8") == "years of work"
    for target, sentence in ((good, "also an input"), (tmp_path / "no" / "out", "directory does not exist")):
        with pytest.raises(InputError, match=sentence):
            prepare(good, "-o", target)
    assert not list(tmp_path.glob("*.partial"))


def test_damaged_and_foreign_prepared_files_are_one_sentence(tmp_path: Path) -> None:
    data = written(tmp_path / "chats.jsonl", some_chats(9))
    prepare(data, "-o", tmp_path / "out")
    header, first, *_ = (tmp_path / "out").read_text("utf-8").splitlines()
    with pytest.raises(InputError, match="is prepared data"):
        prepare(tmp_path / "out", "-o", tmp_path / "again")
    wrong = json.dumps({**json.loads(first), "answer_tokens": "many"})
    for lines, sentence in (
        ([header.replace('"version":1', '"version":99')], "version is 99, expected 1"),
        ([header.replace('"history"', '"story"')], "damaged header"),
        ([header, wrong], "example 1: answer_tokens: expected int, got 'many'"),
        ([header, "{}"], "example 1: conversation: expected str, got None"),
    ):
        (tmp_path / "out").write_text("\n".join(lines), "utf-8")
        with pytest.raises(InputError, match=sentence):
            read_rows(tmp_path / "out")


# Split and leaks

NAMES = st.integers(0, 30).map("c{}".format)
OPENINGS = ("Hi", " hi ", "HI", "Name a river", "name  a river", "Why?")
FILLERS = [e for n in range(150) for e in exchanges(chat(f"filler {n}", "so it is", id=f"filler{n}_0"))]
"""Conversations enough that no side stays empty."""


@given(
    openings=st.dictionaries(NAMES, st.sampled_from(OPENINGS), min_size=2, max_size=12),
    dropped=st.sets(NAMES),
    later=st.lists(st.tuples(NAMES, st.sampled_from(OPENINGS)), max_size=6),
)
def test_no_conversation_and_no_opening_prompt_is_on_two_sides(
    openings: dict[str, str], dropped: set[str], later: list[tuple[str, str]]
) -> None:
    found = list(FILLERS)
    for name, opening in openings.items():
        # Where the opening exchange itself is dropped, its later rounds still belong to its group.
        answer = "" if name in dropped else "an answer"
        found += exchanges(chat(opening, answer, f"q {name}", "more of it", id=f"{name}_0"))
    for piece, (name, prompt) in enumerate(later, 1):
        # A later piece that begins like another conversation opens is not that conversation.
        found += exchanges(chat(prompt, "an answer", f"q {name}", "more of it", id=f"{name}_{piece}"))
    rows = make_rows(found)
    sides: dict[str, set[int]] = {}
    for prompt, part in zip(rows.prompts, rows.part.tolist(), strict=True):
        if prompt.startswith("q "):
            name = prompt.removeprefix("q ")
            sides.setdefault(f"conversation {name}", set()).add(part)
            if name in openings:
                normal = " ".join(openings[name].lower().split())
                sides.setdefault(f"opening {normal}", set()).add(part)
    assert all(len(side) == 1 for side in sides.values()), sides


def test_the_split_keeps_its_shares_and_joins_no_more_than_it_must() -> None:
    found = [e for n in range(3000) for e in exchanges(chat("go on", "an answer", id=f"c{n}_1"))]
    found += [e for n in range(3000) for e in exchanges(chat(f"filler {n}", "so it is", id=f"d{n}_0"))]
    rows = make_rows(found)
    assert len(np.unique(rows.group)) == 6000
    shares = [float((rows.part == part).mean()) for part in range(3)]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.025)


TEXTS = st.text("abc .\n", max_size=12)


@given(
    turns=st.lists(TEXTS, min_size=2, max_size=9),
    other=st.lists(TEXTS, min_size=1, max_size=6),
    place=st.integers(0, 3),
)
def test_no_input_of_a_row_depends_on_its_answer_or_on_later_turns(
    turns: list[str], other: list[str], place: int
) -> None:
    place = min(place, len(turns) // 2 - 1)
    kept = turns[: 2 * place + 1]
    one, two = exchanges(chat(*turns))[place], exchanges(chat(*kept, *other))[place]
    assert replace(one, answer="", answer_tokens=0) == replace(two, answer="", answer_tokens=0)


@given(tokens=st.integers(0, 999), answer=TEXTS, reason=st.sampled_from(("stop", "length")))
def test_no_input_of_a_logged_row_depends_on_its_response(tokens: int, answer: str, reason: str) -> None:
    (one,), changed = exchanges(openai()), openai(reason, tokens)
    changed["response"]["choices"][0]["message"]["content"] = answer
    (two,) = exchanges(changed)
    label = {"answer": "", "answer_tokens": 0, "censored": False}
    assert replace(one, **label) == replace(two, **label)


def test_where_keeps_the_columns_together(tmp_path: Path) -> None:
    rows = make_rows(read_exchanges(written(tmp_path / "chats.jsonl", some_chats(200))))
    keep = rows.round > 0
    later: Rows = rows.where(keep)
    places = np.flatnonzero(keep)
    assert later.prompts == tuple(rows.prompts[p] for p in places)
    assert later.history == tuple(rows.history[p] for p in places)
    assert all(len(h) == r for h, r in zip(later.history_answer_tokens, later.round, strict=True))
    assert len(later.tokens) == len(later.served_model) == len(later.censored) == len(places)


# Published predictions


def test_published_rows_by_hand(tmp_path: Path) -> None:
    lines = ["", "output_token_length,predicted_length,latency,model", "0,30,0,0.01,m", "1,100,2,0.01,m"]
    (tmp_path / FILE).write_text("," + "\n".join(lines[1:]) + "\n", "utf-8")
    rows = read_published(tmp_path)
    assert (rows.tokens.tolist(), rows.predicted_class.tolist()) == ([30.0, 100.0], [0, 2])
    for content, sentence in (
        (",output_token_length\n0,3\n", "predicted_length"),
        (",output_token_length,predicted_length\n0,3,9\n", "expected classes 0 to 4"),
        (",output_token_length,predicted_length\n0,x,1\n", "row 0"),
    ):
        (tmp_path / FILE).write_text(content, "utf-8")
        with pytest.raises(InputError, match=sentence):
            read_published(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        read_published(tmp_path / "none")


def test_perfect_and_useless_classes_are_told_apart() -> None:
    tokens = np.random.default_rng(1).integers(2, 600, 4000).astype(np.float64)
    right = np.digitize(tokens, CLASS_EDGES)
    perfect = judge_published(PublishedRows(tokens=tokens, predicted_class=right))
    assert perfect.class_accuracy == 1.0
    assert perfect.captured == perfect.perfect_classes_captured
    constant = judge_published(PublishedRows(tokens=tokens, predicted_class=np.zeros_like(right)))
    assert np.mean(constant.captured) == pytest.approx(0.0)


@pytest.mark.shared_data
@pytest.mark.skipif(not LMSYS.exists(), reason="the published LMSYS rows are not on this machine")
def test_the_authors_predictions_give_their_accuracy_and_our_captured_share() -> None:
    figures = judge_published(read_published(LMSYS))
    assert figures.by_class.rows == 85_482
    assert figures.class_accuracy == pytest.approx(0.60, abs=0.005)
    assert np.mean(figures.captured) == pytest.approx(0.74, abs=0.01)
    assert np.mean(figures.perfect_classes_captured) == pytest.approx(0.92, abs=0.01)
