"""Tables on narrow consoles: nothing is cut, and no word broken while there is room for it."""

from __future__ import annotations

import io
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from muplan.cli import main
from muplan.fitted_table import FittedTable

QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart.yaml"


def shown(table: FittedTable, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def table(*rows: tuple[str, str, str]) -> FittedTable:
    made = FittedTable(title="GPUs", caption="What it means.")
    for heading in ("model", "why this clock", "MHz"):
        made.add_column(heading)
    for row in rows:
        made.add_row(*row)
    return made


ROW = ("bert-base-uncased", "every model here keeps its limit", "945\n1380")


def test_a_table_with_room_is_rich_s_own() -> None:
    text = shown(table(ROW), 90)
    assert "bert-base-uncased │ every model here keeps its limit │ 945 " in text


def test_lines_break_between_words_only() -> None:
    text = shown(table(ROW), 46)
    assert "bert-base-uncased │" in text
    assert max(map(len, text.splitlines())) <= 46
    assert all(word in text for word in ["every", "model", "here", "keeps", "its", "limit", "945", "1380"])


def test_rows_become_paragraphs_where_words_do_not_fit() -> None:
    lines = shown(table(ROW, ("", "second replica", "")), 30).splitlines()
    assert [line.rstrip() for line in lines] == [
        "GPUs",
        "bert-base-uncased",
        "  why this clock every model",
        "  here keeps its limit, MHz",
        "  945 / 1380",
        "second replica",
        "",
        "What it means.",
    ]


words = st.text("abcdefgh", min_size=1, max_size=12)
cells = st.lists(words, min_size=1, max_size=4).map(" ".join)


@given(st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=4), st.integers(14, 100))
def test_every_word_is_there_at_every_width(rows: list[tuple[str, str, str]], width: int) -> None:
    text = shown(table(*rows), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    found = text.replace("│", " ").replace(",", " ").split()
    assert all(word in found for row in rows for cell in row for word in cell.split())


@pytest.mark.parametrize("width", [80, 160])
def test_the_commands_cut_nothing(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Console, "is_terminal", True)
    monkeypatch.setenv("COLUMNS", str(width))
    for arguments, expected in (
        (["generate", str(QUICKSTART), "-o", str(tmp_path / "q"), "--no-report"], "opt-1.3b_engine"),
        (["explain", str(tmp_path / "q")], "node0/gpu1"),
        (["simulate", str(tmp_path / "q"), "--seconds", "60"], "resnet-50"),
        (["profile", "resnet-50", "--gpu", "V100-16GB", "--batch", "1"], "inference"),
        (["catalog"], "qwen3-30b-a3b"),
    ):
        run = CliRunner().invoke(main, arguments)
        assert run.exit_code == 0, run.stderr
        assert "…" not in run.stdout, arguments
        assert expected in run.stdout
        assert max(map(len, click.unstyle(run.stdout).splitlines())) <= width
