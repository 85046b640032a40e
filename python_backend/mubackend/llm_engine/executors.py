"""Which executor a model's settings ask for."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mubackend.device import open_virtual_gpus
from mubackend.llm_engine.answers import Answers, read_answers, tokenizer_split
from mubackend.llm_engine.executor import Executor
from mubackend.llm_engine.replay import ReplayExecutor
from mubackend.llm_engine.settings import EngineKind, EngineSettings
from mubackend.llm_engine.virtual_time import OnVirtualGpu, VirtualTime
from mubackend.metrics import Metrics
from mubackend.settings import Settings
from muserve.errors import InputError
from muserve.token_pieces import pieces


def open_executor(
    settings: Settings, engine: EngineSettings, metrics: Metrics, cuda_device: int | None
) -> Executor:
    """The executor, its model loaded; ``cuda_device`` is the index of the instance's GPU, None for a CPU.

    InputError when its model, its packages or its GPU cannot be had.
    """
    if engine.kind is EngineKind.REPLAY:
        time = VirtualTime(engine, open_virtual_gpus(settings))
        return ReplayExecutor(engine.slots, time, _answers(settings))
    if engine.kind is EngineKind.VLLM:
        return _vllm(settings, engine, metrics, cuda_device)
    return _transformers(settings, engine, cuda_device)


def _answers(settings: Settings) -> Answers:
    recorded = settings.text("answers_file", "")
    tokenizer = settings.text("tokenizer_file", "")
    return Answers(
        read_answers(settings.node_dir / recorded) if recorded else {},
        tokenizer_split(settings.node_dir / tokenizer) if tokenizer else pieces,
    )


def _transformers(settings: Settings, engine: EngineSettings, cuda_device: int | None) -> Executor:
    from mubackend.llm_engine.transformers_executor import TransformersExecutor
    from mubackend.llm_engine.transformers_model import load_causal_model

    loaded = load_causal_model(Path(settings.text("engine_model")), cuda_device, _longest(settings))
    executor = TransformersExecutor(loaded, engine.slots)
    if not settings.is_virtual:
        return executor
    return OnVirtualGpu(executor, VirtualTime(engine, open_virtual_gpus(settings)))


def _vllm(settings: Settings, engine: EngineSettings, metrics: Metrics, cuda_device: int | None) -> Executor:
    from mubackend.llm_engine.async_executor import AsyncExecutor
    from mubackend.llm_engine.vllm_generator import VllmGenerator

    count: Callable[[int], None] = partial(metrics.increment, "mu_preemptions_total")
    return AsyncExecutor(
        VllmGenerator(vllm_arguments(settings, engine, cuda_device), cuda_device, count), engine
    )


def vllm_arguments(settings: Settings, engine: EngineSettings, cuda_device: int | None) -> dict[str, Any]:
    """What vLLM is told: the plan's part of it wins over ``engine_arguments``, the spec's.

    InputError when those are not a JSON object.
    """
    text = settings.text("engine_arguments", "{}")
    try:
        asked: dict[str, Any] | None = json.loads(text)
    except ValueError:
        asked = None
    if not isinstance(asked, dict):
        raise InputError(f"{settings.model}: engine_arguments: expected a JSON object, got {text!r}")
    planned: dict[str, Any] = {
        "model": settings.text("engine_model"),
        "scheduling_policy": "priority",
        "max_num_seqs": engine.slots,
        "disable_log_stats": False,
    }
    limit = _longest(settings)
    if limit:
        planned["max_model_len"] = limit
    if cuda_device is None:
        asked = {"enforce_eager": True} | asked
    else:
        planned["gpu_memory_utilization"] = settings.number("gpu_memory_utilization", 0.9)
    return asked | planned


def _longest(settings: Settings) -> int | None:
    """Tokens of the longest prompt and answer together; None leaves it to the model."""
    return settings.count("max_model_len") if settings.text("max_model_len", "") else None
