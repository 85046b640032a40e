"""What each queue order buys on real chat lengths, simulated with the disciplines that the engine uses.

Draws requests from the test side of the ShareGPT split with the packaged predictor's own predictions,
and serves them by every order at several loads, burstinesses and numbers of slots. All orders see the same
arrivals. *captured* is (FCFS - order) / (FCFS - oracle) in mean completion time; p99 and the longest wait
are over those of FCFS. The first half of each run is warm-up (``--cold``: none is).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mubackend.length_predictor.predictor import LengthPredictor
from mubackend.llm_engine.disciplines import make_discipline
from mubackend.llm_engine.order_simulation import Arrival, serve
from muplan.load.arrivals import gamma_arrivals
from muplan.predictor.dataset import read_exchanges
from muplan.predictor.rows import TEST, make_rows
from muserve.queue_order import Order, OrderParameters

BASE_MS, MS_PER_TOKEN = 100.0, 20.0
ORACLE_BOUNDED = "bounded, true lengths"
FIGURES = ("captured", "p99 ratio", "longest wait ratio", "mean s")
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One place of the grid."""

    load: float
    cv: float
    slots: int


def main() -> None:
    """Simulate, and print a table a cell or, with --json, all figures."""
    options = _options()
    tokens, predicted = _lengths(options.first_round)
    if options.sharpen:  # what a better predictor would say
        predicted = np.exp((1 - options.sharpen) * np.log(predicted) + options.sharpen * np.log(tokens))
    cells = [
        Cell(load=load, cv=cv, slots=slots)
        for load in options.loads
        for cv in options.cvs
        for slots in options.slots
    ]
    report = []
    for cell in cells:
        arms = _compare(cell, tokens, predicted, options)
        report.append({"load": cell.load, "cv": cell.cv, "slots": cell.slots, "arms": arms})
        if not options.json:
            print(f"\nload {cell.load:g}, CV {cell.cv:g}, {cell.slots} slots")
            for name, figures in arms.items():
                texts = [f"{k} {v['mean']:8.3f} ±{v['spread']:.3f}" for k, v in figures.items()]
                print(f"  {name:24}" + "  ".join(texts))
    if options.json:
        print(json.dumps({"cells": report, "setup": vars(options) | {"simulated": True}}, indent=2))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.9, 1.2])
    parser.add_argument("--cvs", type=float, nargs="+", default=[2.0])
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--orders", nargs="+", choices=[*Order, ORACLE_BOUNDED], default=list(Order))
    parser.add_argument("--cold", action="store_true", help="measure from the first request on")
    parser.add_argument("--first-round", action="store_true", help="opening prompts only")
    parser.add_argument("--sharpen", type=float, default=0.0, help="0: as predicted, 1: true lengths")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _lengths(first_round: bool) -> tuple[Floats, Floats]:
    rows = make_rows(read_exchanges(None))
    keep = (rows.part == TEST) & (rows.first_round if first_round else np.ones(len(rows.part), np.bool_))
    rows = rows.where(keep)
    predictor = LengthPredictor.load()
    return rows.tokens, np.array([predictor.predict(prompt) for prompt in rows.prompts])


def _compare(
    cell: Cell, tokens: Floats, predicted: Floats, options: argparse.Namespace
) -> dict[str, dict[str, dict[str, float]]]:
    seen: dict[str, list[tuple[float, ...]]] = {name: [] for name in options.orders}
    for seed in options.seeds:
        rng = np.random.default_rng(seed)
        drawn = rng.integers(0, len(tokens), options.requests)
        service_ms = BASE_MS + MS_PER_TOKEN * tokens[drawn]
        predicted_ms = BASE_MS + MS_PER_TOKEN * predicted[drawn]
        rate_rps = 1000 * cell.load * cell.slots / float(service_ms.mean())
        at_ms = 1000 * gamma_arrivals(rate_rps, cell.cv, 1.5 * options.requests / rate_rps, rng)
        count = min(options.requests, len(at_ms))
        rows = list(zip(at_ms[:count], service_ms[:count], predicted_ms[:count], strict=True))
        first = 0 if options.cold else count // 2
        jct_ms: dict[str, Floats] = {}
        wait_ms: dict[str, Floats] = {}
        for name in dict.fromkeys(("fcfs", "oracle", *options.orders)):
            wait_ms[name] = np.array(list(_waits(rows, name, cell.slots)))[first:]
            jct_ms[name] = wait_ms[name] + service_ms[first:count]
        fcfs, oracle = jct_ms["fcfs"], jct_ms["oracle"]
        for name, figures in seen.items():
            jct = jct_ms[name]
            figures.append(
                (
                    float((fcfs.mean() - jct.mean()) / (fcfs.mean() - oracle.mean())),
                    float(np.percentile(jct, 99) / np.percentile(fcfs, 99)),
                    float(wait_ms[name].max() / wait_ms["fcfs"].max()),
                    float(jct.mean() / 1000),
                )
            )
    return {
        name: {
            figure: {"mean": float(values.mean()), "spread": float(values.std())}
            for figure, values in zip(FIGURES, np.array(figures).T, strict=True)
        }
        for name, figures in seen.items()
    }


def _waits(rows: list[tuple[float, float, float]], name: str, slots: int) -> Iterator[float]:
    knows = name in (Order.ORACLE, ORACLE_BOUNDED)
    arrivals = [Arrival(float(at), float(s), float(s if knows else p)) for at, s, p in rows]
    order = Order.BOUNDED if name == ORACLE_BOUNDED else Order(name)
    for served in serve(arrivals, make_discipline(order, OrderParameters()), slots):
        yield served.wait_ms


if __name__ == "__main__":
    main()
