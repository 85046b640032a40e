"""How a spec has its requests predicted, ordered and served."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field

from muplan.spec_section import Section
from muserve.queue_order import PARAMETERS_OF, Order, OrderParameters

# Triton's native priority queue loses wake-ups; measured on 2.51: with 4 instances none in 1,800 dispatches.
FEWEST_NATIVE_SLOTS = 4
NATIVE_ORDERS = (Order.AGING, Order.SSJF, Order.FCFS)


class Target(StrEnum):
    """Which Triton serves the repository: any with the Python backend, or NVIDIA's NGC containers."""

    EMBEDDED = "embedded"
    NGC = "ngc"


class PredictorSpec(Section):
    """Which predictor, and how its lengths become priorities: arrival + alpha x predicted service time."""

    alpha: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="0 = first come first served, .inf = shortest first without aging. Given without "
        "serving.order, it chooses the order aging. Default: 30.",
    )
    file: str | None = Field(
        default=None, description="Directory of a trained predictor, relative to the spec."
    )


OrderNumber = Annotated[float, Field(ge=0, le=1e6)] | None


def _order_number(name: str) -> Any:
    used_by = [order.value for order in Order if name in PARAMETERS_OF[order]]
    users = "every order" if len(used_by) == len(Order) else f"order {', '.join(used_by)}"
    default = getattr(OrderParameters(), name)
    return Field(default=None, description=f"Used by {users}. Default: {default:g}.")


class ServingSpec(Section):
    """Which Triton serves, who orders waiting requests, and how."""

    target: Annotated[Target, Field(strict=False)] = Target.EMBEDDED
    queue: Literal["engine", "native"] = Field(
        default="engine",
        description="engine: our engine orders the requests that wait; native: Triton's own priority queue "
        "does, in front of an engine that is not ours.",
    )
    order: Annotated[Order, Field(strict=False)] | None = Field(
        default=None,
        description="Who is served first. Default: bounded, shortest predicted first within a bound on "
        "waiting that follows the backlog; aging if predictor.alpha is given, or with queue native.",
    )
    bound_quantile: OrderNumber = _order_number("bound_quantile")
    bound_ordinary: OrderNumber = _order_number("bound_ordinary")
    bound_extreme: OrderNumber = _order_number("bound_extreme")
    adaptive_factor: OrderNumber = _order_number("adaptive_factor")
    adaptive_floor: OrderNumber = _order_number("adaptive_floor")
    cap_factor: OrderNumber = _order_number("cap_factor")
    class_levels: OrderNumber = _order_number("class_levels")
    standard_share: OrderNumber = _order_number("standard_share")
    batch_share: OrderNumber = _order_number("batch_share")
