"""What the engine reads from its ``config.pbtxt``."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from mubackend.llm_engine.batching import Batching
from mubackend.llm_engine.request import DEFAULT_MAX_PROMPT_BYTES
from mubackend.priority import predicted_service_ms, virtual_finish_ms
from mubackend.settings import Settings
from muserve.errors import InputError
from muserve.queue_order import PARAMETERS_OF, Order, OrderParameters

DEFAULT_PREDICTOR_TIMEOUT_MS = 1000.0


class EngineKind(StrEnum):
    """What generates the tokens."""

    REPLAY = "replay"
    TRANSFORMERS = "transformers"
    VLLM = "vllm"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Times at the top clock; ``decode_ms`` is one token step of a single running request."""

    model: str
    slots: int
    queue_limit: int
    prefill_ms: float
    prefill_sensitivity: float
    decode_ms: float
    decode_ms_per_running_request: float
    decode_sensitivity: float
    slo_ms: float
    kind: EngineKind = EngineKind.REPLAY
    queue_order: Order = Order.BOUNDED
    order_parameters: OrderParameters = field(default_factory=OrderParameters)
    predictor_timeout_s: float = DEFAULT_PREDICTOR_TIMEOUT_MS / 1000
    max_prompt_bytes: int = DEFAULT_MAX_PROMPT_BYTES
    batching: Batching = Batching.CONTINUOUS
    batch_delay_ms: float = 0.0

    def step_ms(self, running: int) -> float:
        """One token step of ``running`` requests at the top clock."""
        return self.decode_ms + self.decode_ms_per_running_request * (running - 1)

    def service_ms(self, tokens: float) -> float:
        """Time in a slot of a request with so many tokens, at the top clock and with all slots running."""
        return predicted_service_ms(self.prefill_ms, self.step_ms(self.slots), max(1.0, tokens))

    def fallback_priority(self, arrival_ms: int) -> int:
        """Priority of a request without a prediction: its arrival; see ``virtual_finish_ms``."""
        return virtual_finish_ms(arrival_ms, self.order_parameters.alpha, 0.0)


def read_engine_settings(settings: Settings) -> EngineSettings:
    """Check the parameters; InputError names the one that is wrong.

    Optional ones: ``alpha`` (the predictor's), ``predictor_timeout_ms``, ``max_prompt_bytes``,
    ``queue_order`` and the parameters of that order.
    """
    kind = EngineKind(settings.choice("engine", tuple(EngineKind)))
    if kind is EngineKind.REPLAY and not settings.is_virtual:
        uuid = settings.text("gpu_uuid", "none")
        raise InputError(
            f"{settings.model}/config.pbtxt: parameters: gpu_uuid: engine replay runs on a virtual GPU "
            f"(VGPU-...), got {uuid}"
        )
    order = Order(settings.choice("queue_order", tuple(Order), Order.BOUNDED))
    return EngineSettings(
        model=settings.text("muserve_model"),
        slots=settings.count("slots"),
        queue_limit=settings.count("queue_limit"),
        prefill_ms=settings.number("prefill_ms"),
        prefill_sensitivity=settings.number("prefill_sensitivity"),
        decode_ms=settings.number("decode_ms"),
        decode_ms_per_running_request=settings.number("decode_ms_per_running_request", 0.0),
        decode_sensitivity=settings.number("decode_sensitivity"),
        slo_ms=settings.number("slo_ms"),
        kind=kind,
        queue_order=order,
        order_parameters=_order_parameters(settings, order),
        predictor_timeout_s=settings.number("predictor_timeout_ms", DEFAULT_PREDICTOR_TIMEOUT_MS) / 1000,
        max_prompt_bytes=settings.count("max_prompt_bytes", DEFAULT_MAX_PROMPT_BYTES),
        batching=Batching(settings.choice("batching", tuple(Batching), Batching.CONTINUOUS)),
        batch_delay_ms=settings.number("max_queue_delay_ms", 0.0),
    )


def _order_parameters(settings: Settings, order: Order) -> OrderParameters:
    names = {"alpha", *PARAMETERS_OF[order]}
    given = {
        name: settings.number(name, infinite=name == "alpha")
        for name in names
        if settings.parameters.get(name)
    }
    try:
        return OrderParameters(**given)
    except InputError as error:
        raise InputError(f"{settings.model}/config.pbtxt: parameters: {error}") from error
