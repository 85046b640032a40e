"""What the front reads from its ``config.pbtxt`` and its environment."""

from __future__ import annotations

from collections.abc import Mapping

from mubackend.front.relay import FrontSettings
from mubackend.settings import Settings
from muserve.plan import GRPC_URL_VARIABLE

# Where Triton listens unless told otherwise.
DEFAULT_URL = "127.0.0.1:8001"


def read_front_settings(settings: Settings, environment: Mapping[str, str]) -> FrontSettings:
    """Check the parameters; InputError names the one that is wrong.

    A model is not told where its own server listens. ``muplan serve`` says it in ``MUSERVE_GRPC_URL``;
    whoever starts Triton otherwise sets the variable, or the parameter ``grpc_url``, which wins.
    """
    return FrontSettings(
        model=settings.text("muserve_model"),
        url=settings.text("grpc_url", environment.get(GRPC_URL_VARIABLE) or DEFAULT_URL),
        slots_model=settings.text("slots_model"),
        engine_model=settings.text("engine_model"),
        slots=settings.count("slots"),
        queue_limit=settings.count("queue_limit"),
        const_ms=settings.number("const_ms"),
        ms_per_token=settings.number("ms_per_token"),
        alpha=settings.number("alpha", infinite=True),
        advises=settings.choice("engine_is_ours", ("true", "false")) == "true",
    )
