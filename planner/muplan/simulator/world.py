"""A scenario as flat arrays, which the compiled event loop reads and writes. Times in milliseconds.

* A *station* is a waiting line and the *executors* that serve it: the instances of a single-pass stage, or
  the one batch of a token engine.
* An executor is one customer of each GPU it is a *member* of. A GPU gives each of its n busy customers
  1/n of itself (time slicing), an executor with several GPUs goes at the pace of the slowest.
* GPUs that executors tie together, and all executors on them, are an *island*: what happens on one
  island changes nobody's pace on another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# Bins of the latency histogram: each 1 % wide, from a microsecond to three years.
BIN_RATIO = 1.01
SHORTEST_MS = 1e-3
BINS = 3300

# Measured requests are counted in so many groups of equal spans of arrival time (batch means).
GROUPS = 32

ARRIVAL = np.dtype(
    [("time_ms", "f8"), ("size", "f8"), ("units", "f8"), ("predicted", "f8"), ("model", "i8")], align=True
)
"""One request to come. ``size`` multiplies single-pass and prefill times, ``units`` is an answer's length in
tokens (0 for a single-pass model), ``predicted`` the expected ``units``."""

REQUEST = np.dtype(
    [
        ("key", "f8"),
        ("number", "i8"),
        ("left", "i8"),
        ("right", "i8"),
        ("model", "i8"),
        ("stage", "i8"),
        ("station", "i8"),
        ("executor", "i8"),
        ("arrival_ms", "f8"),
        ("since_ms", "f8"),
        ("size", "f8"),
        ("units", "f8"),
        ("predicted", "f8"),
    ],
    align=True,
)
MODEL = np.dtype(
    [
        ("first_stage", "i8"),
        ("stages", "i8"),
        ("discipline", "i8"),
        ("alpha", "f8"),
        ("slo_ms", "f8"),
    ],
    align=True,
)
STAGE = np.dtype([("first_station", "i8"), ("stations", "i8"), ("transfer_ms", "f8")], align=True)
STATION = np.dtype(
    [
        ("model", "i8"),
        ("engine", "?"),
        ("gpu", "i8"),
        ("first_executor", "i8"),
        ("executors", "i8"),
        ("slots", "i8"),
        ("limit", "i8"),
        ("max_batch", "i8"),
        ("batch_growth", "f8"),
        ("max_delay_ms", "f8"),
        ("ms_per_size", "f8"),
        ("ms_per_unit", "f8"),
        ("first", "i8"),
        ("waiting", "i8"),
        ("present", "i8"),
        ("backlog_ms", "f8"),
    ],
    align=True,
)
EXECUTOR = np.dtype(
    [
        ("station", "i8"),
        ("island", "i8"),
        ("first_member", "i8"),
        ("members", "i8"),
        ("place", "i8"),
        ("phase", "i8"),
        ("remaining_ms", "f8"),
        ("pace", "f8"),
        ("first", "i8"),
        ("running", "i8"),
        ("steps", "i8"),
        ("stretch", "i8"),
        ("step_ms", "f8"),
        ("latency_ms", "f8"),
        ("decode_ms", "f8"),
        ("growth_ms", "f8"),
    ],
    align=True,
)
ISLAND = np.dtype(
    [
        ("settled_ms", "f8"),
        ("first_gpu", "i8"),
        ("gpus", "i8"),
        ("first_place", "i8"),
        ("busy", "i8"),
        ("next", "i8"),
    ],
    align=True,
)
GPU = np.dtype(
    [("customers", "i8"), ("power_w", "f8"), ("idle_w", "f8"), ("energy_mj", "f8"), ("busy_ms", "f8")],
    align=True,
)
CLOCK = np.dtype(
    [
        ("arrived", "i8"),
        ("free", "i8"),
        ("transfers", "i8"),
        ("last_ms", "f8"),
        ("measured_from_ms", "f8"),
        ("measured_until_ms", "f8"),
        ("events", "i8"),
    ],
    align=True,
)
TALLY = np.dtype(
    [("arrived", "i8"), ("completed", "i8"), ("dropped", "i8"), ("met", "i8"), ("jct_ms", "f8")], align=True
)

Array = npt.NDArray[Any]


class World(NamedTuple):
    """Everything that changes, and the tables it changes by.

    ``slowdown`` and ``power_w`` have a row for each member and a column for each phase (0: single pass or
    prefill, 1: decode). ``customers`` has a place for each executor of an island, the busy ones first.
    ``tallies`` is [models, GROUPS], ``histogram`` [models, BINS], both of measured requests;
    ``seen`` [models] and ``seen_histogram`` ([models, BINS], or no columns when nobody looks) are of all.
    """

    clock: Array
    requests: Array
    models: Array
    stages: Array
    stations: Array
    executors: Array
    islands: Array
    gpus: Array
    island_gpus: Array
    member_gpu: Array
    slowdown: Array
    power_w: Array
    customers: Array
    due_ms: Array
    order: Array
    place: Array
    tallies: Array
    histogram: Array
    seen: Array
    seen_histogram: Array
