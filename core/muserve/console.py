"""The console that commands print their tables on."""

from __future__ import annotations

from rich.console import Console


def table_console(piped_columns: int = 120) -> Console:
    """Standard output: a terminal's own width, else ``piped_columns``.

    Without a terminal rich assumes 80 columns, which breaks the cells of a table.
    """
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else piped_columns
    return console
