"""HTML from the templates beside this module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """A headline figure, what it is, and what it stands on."""

    figure: str
    label: str
    detail: str


def render(template: str, **values: Any) -> str:
    """One HTML document: styles and plots inside, no script, no link to fetch."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("muplan.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(template).render(**values)
