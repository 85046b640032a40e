"""How good predicted answer lengths are, and what they are worth to a scheduler.

--published-rows DIR judges the SSJF authors' own predictions for LMSYS-Chat-1M by our metrics: five-class
accuracy, rank agreement, and the captured share of the oracle's gain in mean completion time, each request
ordered by the mean length of its predicted class. Nothing is trained, and the queue is simulated (one
server, load 0.9, Gamma arrivals of CV 2).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from muplan.predictor.evaluation import ARRIVAL_CV, LOAD, REQUESTS
from muplan.predictor.published import judge_published, read_published
from muserve.console import table_console
from muserve.errors import InputError


def main() -> None:
    """Judge what was asked for, and print tables or, with --json, one document."""
    options = _options()
    report: dict[str, Any] = {"setup": {"load": LOAD, "arrival_cv": ARRIVAL_CV, "requests": REQUESTS}}
    if options.published_rows is not None:
        report["published_rows"] = asdict(judge_published(read_published(options.published_rows)))
    if options.json:
        print(json.dumps(report, indent=2))
        return
    if "published_rows" in report:
        table_console().print(_published_table(report["published_rows"]))


def _published_table(figures: dict[str, Any]) -> Table:
    by_class = figures["by_class"]
    table = Table(title="Published LMSYS rows, the authors' predicted classes", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_row("rows", f"{by_class['rows']:,}")
    table.add_row("five-class accuracy", f"{figures['class_accuracy']:.3f}")
    for name in ("kendall_tau", "spearman", "gini"):
        table.add_row(name.replace("_", " "), f"{by_class[name]:.3f}")
    for name, shares in (
        ("captured share", figures["captured"]),
        ("captured share of five perfect classes", figures["perfect_classes_captured"]),
    ):
        spread = f"{statistics.mean(shares):.3f} ± {statistics.stdev(shares):.3f}"
        table.add_row(f"{name}, mean and deviation over {len(shares)} seeds", spread)
    return table


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--published-rows", type=Path, metavar="DIR", help="directory of the published CSV")
    parser.add_argument("--json", action="store_true", help="print a document instead of tables")
    options = parser.parse_args()
    if options.published_rows is None:
        parser.error("nothing to judge: give --published-rows DIR")
    return options


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"Error: {error}")
