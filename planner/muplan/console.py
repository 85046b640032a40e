"""The console that commands print their tables on."""

from __future__ import annotations

from rich.console import Console

# Without a terminal rich assumes 80 columns, which breaks the cells of a table; a plan reads well at this.
_PIPED_COLUMNS = 120


def plan_console() -> Console:
    """Standard output: a terminal's own width, else one that the tables are made for."""
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else _PIPED_COLUMNS
    return console
