"""Tables that leave nothing out, however narrow the console."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text


class FittedTable(Table):
    """Breaks lines between words only; where not even that fits, each row becomes a paragraph.

    rich's own table shortens all columns alike, to one letter or none if need be.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        ranges = [self._range(console, options, number) for number in range(len(self.columns))]
        _, right, _, left = self.padding
        frame = len(ranges) * (left + right + 1) + 1 if self.box else len(ranges) * (left + right)
        room = options.max_width - frame
        if sum(needed.minimum for needed in ranges) > room:
            yield from self._paragraphs(console)
            return
        shown = copy(self)
        if sum(needed.maximum for needed in ranges) > room:
            widths = _narrowed(ranges, room)
            shown.columns = [replace(c, width=w) for c, w in zip(self.columns, widths, strict=True)]
        yield from Table.__rich_console__(shown, console, options)

    def _range(self, console: Console, options: ConsoleOptions, number: int) -> Measurement:
        """The widths that a column may have: of its longest word, or cell if that is not to be broken."""
        column = self.columns[number]
        unlimited = options.update(width=2**16)
        cells = [Measurement.get(console, unlimited, cell) for cell in (column.header, *column.cells)]
        widest = max(cell.maximum for cell in cells)
        return Measurement(widest if column.no_wrap else max(cell.minimum for cell in cells), widest)

    def _paragraphs(self, console: Console) -> Iterator[RenderableType]:
        """The first cell of each row on a line, then what the others are called and hold."""
        headings = [_line(console, column.header, " ") for column in self.columns]
        if self.title:
            yield Text.assemble((_line(console, self.title).plain, "table.title"))
        for cells in zip(*(column.cells for column in self.columns), strict=True):
            named = zip(headings, (_line(console, cell) for cell in cells), strict=True)
            (_, first), *others = [pair for pair in named if pair[1].plain] or [(Text(), Text())]
            yield Text.assemble((first.plain, "bold"))
            pairs = [Text.assemble((heading.plain, "dim"), " ", cell) for heading, cell in others]
            yield Padding(Text(", ").join(pairs), (0, 0, 0, 2))
        if self.caption:
            yield Text.assemble((_line(console, self.caption).plain, "table.caption"))


def _narrowed(ranges: Sequence[Measurement], room: int) -> list[int]:
    """Widths of ``room`` together: the widest columns are narrowed first, none below its minimum."""
    for widest in range(max(needed.maximum for needed in ranges), 0, -1):
        widths = [max(needed.minimum, min(needed.maximum, widest)) for needed in ranges]
        if sum(widths) <= room:
            break
    for number, needed in enumerate(ranges):
        widths[number] += min(needed.maximum - widths[number], room - sum(widths))
    return widths


def _line(console: Console, cell: RenderableType, between: str = " / ") -> Text:
    """A cell, which holds text, on one line."""
    text = console.render_str(cell) if isinstance(cell, str) else cell
    assert isinstance(text, Text), "cells of these tables hold text"
    return Text(between).join(line for line in text.split("\n") if line.plain)
