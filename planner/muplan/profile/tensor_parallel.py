"""Time laws of a generative model cut tensor parallel over several GPUs of a node. Modelled.

As in Megatron-LM (Shoeybi et al. 2019, arXiv 1909.08053, section 3): every matrix is divided by the degree d,
and each layer sums its partial results twice, after attention and after the feed-forward block. Hence

    t_d = t_1 / d + 2 layers (launch + 2 (d - 1) / d x bytes / link)

with a ring all-reduce of ``bytes`` = tokens x hidden size x element size (Thakur et al. 2005, section 4.5).
The link does not follow the SM clock, so sensitivity falls to k_d = k_1 (t_1 / d) / t_d. Dividing all of t_1
divides launch costs too, as compiled engines nearly do; a host that launches every kernel gains less.
"""

from __future__ import annotations

from dataclasses import replace

from muplan.architecture.generative import GenerativeModel
from muplan.profile.roofline import EAGER
from muserve.plan import TimeLaw

_ALL_REDUCES_PER_LAYER = 2


def all_reduces_ms(llm: GenerativeModel, degree: int, tokens: float, link_gbs: float) -> float:
    """Time of one step's all-reduces between ``degree`` GPUs, ``tokens`` in the step; 0 for degree 1."""
    if degree == 1:
        return 0.0
    sent_bytes = 2 * (degree - 1) / degree * tokens * llm.hidden_size * llm.element_bytes
    each_ms = EAGER.expected.launch_us * 1e-3 + sent_bytes / link_gbs * 1e-6
    return _ALL_REDUCES_PER_LAYER * llm.layers * each_ms


def sharded_law(law: TimeLaw, degree: int, communication_ms: float) -> TimeLaw:
    """``law`` of the whole model as that of ``degree`` GPUs that also spend ``communication_ms``."""
    work_ms = law.latency_ms / degree
    latency_ms = work_ms + communication_ms
    share = work_ms / latency_ms
    k = law.sensitivity
    sensitivity = replace(k, value=k.value * share, low=k.low * share, high=k.high * share)
    return replace(law, latency_ms=latency_ms, sensitivity=sensitivity)
