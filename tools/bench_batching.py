"""No, dynamic and continuous batching on one replay engine, by load: mean completion time and tokens/s.

Each arm is the engine as it runs in Triton (queue, batching, executor, virtual GPU), without Triton around
it, so the differences are those of batching alone. All arms of a round get the same requests at the same
times: synthetic answers (lognormal lengths of real chats) and Poisson arrivals. The load is the share of what
continuous batching can serve with all slots busy; no batching has one slot, the others --slots. Orders are
--orders; ssjf knows the true lengths. A load that an arm cannot serve grows its queue for as long as the run
lasts: its completion times are then those of --requests requests and no law.
Time is virtual but real to wait for, --speed times faster: *busy* is the virtual GPU's share of the run,
which is near 1 under a backlog unless the machine is too slow. Spreads: standard deviations over --rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mubackend.failure import Code
from mubackend.length_predictor.service import Prediction
from mubackend.llm_engine.answers import Answers
from mubackend.llm_engine.batching import Batching
from mubackend.llm_engine.engine import Engine
from mubackend.llm_engine.ledger import epoch_ms
from mubackend.llm_engine.replay import ReplayExecutor
from mubackend.llm_engine.request import GenerationRequest
from mubackend.llm_engine.settings import EngineSettings
from mubackend.llm_engine.virtual_time import VirtualTime
from mubackend.metrics import RecordedMetrics
from mubackend.sampling import Sampling
from muserve.gpu.virtual import VirtualGpu
from muserve.queue_order import Order

PREFILL_MS, DECODE_MS = 10.0, 8.0
LONGEST_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request: when it comes, and how many tokens its answer has."""

    at_s: float
    prompt: str
    tokens: int


@dataclass(slots=True)
class Client:
    """Waits for the end of one answer; ``Reply``."""

    ended_s: float = 0.0
    tokens: int = 0
    error: str = ""
    ended: threading.Event = field(default_factory=threading.Event)

    def send(self, text: str, *, final: bool) -> None:
        """A token."""
        self.tokens += 1
        if final:
            self.ended_s = time.monotonic()
            self.ended.set()

    def fail(self, code: Code, message: str) -> None:
        """The engine gave up."""
        self.error = message
        self.ended.set()

    def cancelled(self) -> bool:
        """Nobody goes."""
        return False


def main() -> None:
    """Measure, and print a table or, with --json, a document."""
    options = _options()
    report: dict[str, Any] = {"setup": _setup(options), "cells": []}
    cells = [
        (load, order, batching) for load in options.loads for order in options.orders for batching in Batching
    ]
    with Progress(console=Console(stderr=True)) as progress, tempfile.TemporaryDirectory() as directory:
        task = progress.add_task("measuring", total=len(cells) * options.rounds)
        measured: dict[tuple[float, str, Batching], list[dict[str, float]]] = {cell: [] for cell in cells}
        for seed in range(options.seed, options.seed + options.rounds):
            for load, order, batching in cells:
                gpu_file = Path(directory, f"{seed}-{load}-{order}-{batching}.vgpu")
                asks = requests(options, load, seed)
                result = measure(options, asks, Order(order), batching, gpu_file)
                measured[load, order, batching].append(result)
                progress.advance(task)
    for (load, order, batching), rounds in measured.items():
        figures = {
            name: {
                "mean": statistics.mean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
            }
            for name in rounds[0]
            for values in [[one[name] for one in rounds]]
        }
        report["cells"].append({"load": load, "order": order, "batching": batching.value, **figures})
    if options.json:
        json.dump(report, sys.stdout, indent=2)
        print()
    else:
        _print(report)


def requests(options: argparse.Namespace, load: float, seed: int) -> list[Ask]:
    """The same for every arm: Poisson arrivals at ``load`` of what continuous batching serves at best."""
    randoms = random.Random(seed)
    answers = Answers({})
    prompts = [f"{seed}-{number}" for number in range(options.requests)]
    sampling = Sampling(max_tokens=LONGEST_TOKENS)
    lengths = [len(answers.tokens(prompt, sampling)) for prompt in prompts]
    step_ms = DECODE_MS + options.growth_ms * (options.slots - 1)
    # A prefill keeps all slots from decoding, a token step serves all of them.
    service_ms = statistics.mean(PREFILL_MS + step_ms * tokens / options.slots for tokens in lengths)
    at_s, asks = 0.0, []
    for prompt, tokens in zip(prompts, lengths, strict=True):
        asks.append(Ask(at_s=at_s, prompt=prompt, tokens=tokens))
        at_s += randoms.expovariate(1000 * load / service_ms) / options.speed
    return asks


def measure(
    options: argparse.Namespace, asks: list[Ask], order: Order, batching: Batching, gpu_file: Path
) -> dict[str, float]:
    """One run of one arm; times as the engine would have them at ``--speed`` 1."""
    speed = options.speed
    settings = EngineSettings(
        model="llm",
        slots=1 if batching is Batching.NONE else options.slots,
        queue_limit=len(asks) + 1,
        prefill_ms=PREFILL_MS / speed,
        prefill_sensitivity=0.9,
        decode_ms=DECODE_MS / speed,
        decode_ms_per_running_request=options.growth_ms / speed,
        decode_sensitivity=0.1,
        slo_ms=60_000.0,
        queue_order=order,
        batching=batching,
        batch_delay_ms=options.delay_ms / speed if batching is Batching.DYNAMIC else 0.0,
    )
    gpu = VirtualGpu.create(gpu_file, "V100-16GB", 0, "VGPU-bench-0")
    executor = ReplayExecutor(settings.slots, VirtualTime(settings, gpu), Answers({}))
    engine = Engine(settings, executor, RecordedMetrics())
    engine.start()
    started_s = time.monotonic()
    clients = []
    for ask in asks:
        time.sleep(max(0.0, started_s + ask.at_s - time.monotonic()))
        client = Client()
        request = GenerationRequest(
            prompt=ask.prompt,
            stream=True,
            prepend_prompt=False,
            sampling=Sampling(max_tokens=LONGEST_TOKENS),
        )
        prediction = Prediction(predicted_tokens=float(ask.tokens), priority=1, arrival_ms=epoch_ms())
        engine.submit(request, client, prediction)
        clients.append(client)
    for client in clients:
        client.ended.wait()
        if client.error:
            raise RuntimeError(client.error)
    makespan_s = max(client.ended_s for client in clients) - started_s
    engine.stop()
    completion_s = sorted(
        speed * (client.ended_s - started_s - ask.at_s) for client, ask in zip(clients, asks, strict=True)
    )
    tokens = sum(client.tokens for client in clients)
    return {
        "mean_jct_s": statistics.mean(completion_s),
        "p50_jct_s": completion_s[len(completion_s) // 2],
        "p99_jct_s": completion_s[int(0.99 * (len(completion_s) - 1))],
        "tokens_per_s": tokens / (speed * makespan_s),
        "busy": gpu.busy_s() / makespan_s,
    }


def _setup(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "slots": options.slots,
        "requests": options.requests,
        "rounds": options.rounds,
        "seed": options.seed,
        "prefill_ms": PREFILL_MS,
        "decode_ms": DECODE_MS,
        "decode_ms_per_running_request": options.growth_ms,
        "max_queue_delay_ms": options.delay_ms,
        "speed": options.speed,
        "virtual": True,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load_average_at_start": os.getloadavg()[0],
    }


def _print(report: dict[str, Any]) -> None:
    table = Table(
        "load",
        "order",
        "batching",
        "mean JCT s",
        "p50",
        "p99",
        "tokens/s",
        "busy",
        "x none",
        title="Batching",
    )
    for cell in report["cells"]:
        none = next(
            other
            for other in report["cells"]
            if (other["load"], other["order"], other["batching"]) == (cell["load"], cell["order"], "none")
        )
        table.add_row(
            f"{cell['load']:g}",
            cell["order"],
            cell["batching"],
            f"{cell['mean_jct_s']['mean']:.2f} ± {cell['mean_jct_s']['sd']:.2f}",
            f"{cell['p50_jct_s']['mean']:.2f}",
            f"{cell['p99_jct_s']['mean']:.2f}",
            f"{cell['tokens_per_s']['mean']:.0f} ± {cell['tokens_per_s']['sd']:.0f}",
            f"{cell['busy']['mean']:.2f}",
            f"{none['mean_jct_s']['mean'] / cell['mean_jct_s']['mean']:.2f}",
        )
    Console(width=120).print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.1, 0.9])
    parser.add_argument("--orders", nargs="+", choices=[o.value for o in Order], default=["fcfs", "ssjf"])
    parser.add_argument("--requests", type=int, default=40, help="in each run")
    parser.add_argument("--rounds", type=int, default=3, help="seeds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--delay-ms", type=float, default=100.0, help="how long a dynamic batch waits")
    parser.add_argument(
        "--growth-ms", type=float, default=0.3, help="what each running request adds to a step"
    )
    parser.add_argument("--speed", type=float, default=4.0, help="virtual seconds in a real one")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
