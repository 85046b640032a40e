"""What is known of language models and the clock, held against modelled profiles.

The measured figures are least-squares fits of ``t = a + b / f`` from the L20's knee (1500 MHz) up to
2520 MHz, to medians of single steps of Qwen2.5-7B in vLLM 0.10.1 (pdblend). Known deviations of the model:
it is up to 19 % slow at batch 1 and up to 23 % slow at long prompts, whose k it puts up to .09 too high.
"""

from __future__ import annotations

import pytest

from muplan.architecture.config import parse_generative
from muplan.architecture.generative import GenerativeModel, generative_model
from muplan.catalog import load_llm
from muplan.profile.llm import decode_law, prefill_law
from muserve.gpu.parts import load_part
from muserve.physics import energy_optimal_clock_mhz
from muserve.plan import Basis

MEASURED_ON_L20 = [  # phase, batch, tokens, latency in ms at 2520 MHz, k
    ("decode", 1, 1024, 20.5, 0.04),
    ("decode", 4, 1024, 22.2, 0.08),
    ("decode", 16, 1024, 24.0, 0.06),
    ("decode", 32, 1024, 28.5, 0.07),
    ("decode", 64, 256, 28.1, 0.07),
    ("decode", 64, 1024, 32.3, 0.06),
    ("decode", 128, 256, 33.2, 0.22),
    ("decode", 128, 1024, 41.4, 0.19),
    ("decode", 256, 256, 52.0, 0.64),
    ("decode", 256, 1024, 68.8, 0.50),
    ("prefill", 1, 128, 29.2, 0.21),
    ("prefill", 1, 1024, 136.6, 0.84),
    ("prefill", 1, 2048, 266.1, 0.88),
    ("prefill", 1, 7168, 993.8, 0.90),
]


@pytest.fixture(scope="module")
def qwen() -> GenerativeModel:
    """Qwen2.5-7B (arXiv 2412.15115)."""
    config = {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    }
    return generative_model("qwen2.5-7b", parse_generative(config, "qwen2.5-7b"))


@pytest.mark.parametrize(("phase", "batch", "tokens", "latency_ms", "k"), MEASURED_ON_L20)
def test_the_laws_are_near_what_was_measured_on_an_l20(
    qwen: GenerativeModel, phase: str, batch: int, tokens: int, latency_ms: float, k: float
) -> None:
    part = load_part("L20")
    law = prefill_law(qwen, part, tokens) if phase == "prefill" else decode_law(qwen, part, batch, tokens)
    assert law.latency_ms == pytest.approx(latency_ms, rel=0.23)
    assert law.sensitivity.value == pytest.approx(k, abs=0.12)
    assert law.sensitivity.low - 0.06 <= k <= law.sensitivity.high + 0.01


def test_prefill_feels_the_clock_more_the_longer_the_prompt() -> None:
    llm, part = load_llm("opt-1.3b"), load_part("V100-16GB")
    k = [prefill_law(llm, part, tokens).sensitivity.value for tokens in (16, 128, 512, 1024, 2048)]
    assert k == sorted(k)
    assert k[0] < 0.2
    assert k[-1] > 0.9


@pytest.mark.parametrize("part_name", ["V100-32GB", "L20", "A100-80GB", "H100"])
def test_decode_is_flat_at_small_batches_only(part_name: str) -> None:
    llm, part = load_llm("qwen3-8b"), load_part(part_name)
    small, large = (decode_law(llm, part, batch, 256).sensitivity for batch in (1, 256))
    assert small.value < 0.05
    assert large.value > 4 * small.value
    assert large.value > 0.1


@pytest.mark.parametrize("part_name", ["H100", "H200"])
def test_the_clock_response_of_a_gpu_without_a_sweep_is_modelled(part_name: str) -> None:
    part = load_part(part_name)
    assert part.sources["busy_curves"].basis.value == "modelled"
    assert decode_law(load_llm("opt-1.3b"), part, 1, 256).basis is Basis.MODELLED


@pytest.mark.parametrize("part_name", ["V100-16GB", "A100-40GB", "L20"])
@pytest.mark.parametrize("k", [0.3, 0.6, 0.9])
def test_the_energy_optimal_clock_is_about_six_to_eight_tenths(part_name: str, k: float) -> None:
    part = load_part(part_name)
    assert 0.55 <= energy_optimal_clock_mhz(part, k) / part.top_clock_mhz <= 0.85
