"""A language model cut into layer ranges answers, token by token, what the whole one answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from mubackend.failure import Code, RequestError
from mubackend.metrics import RecordedMetrics
from mubackend.settings import Settings
from mubackend.stage.runner import VirtualCost
from mubackend.stage.token_stage import TokenStage, greedy_tokens, open_token_stage
from muplan.architecture.config import parse_generative
from muplan.architecture.decoder import DecoderArchitecture
from muplan.architecture.generative import step_graph
from muplan.architecture.layer_stages import layer_stages
from muserve.errors import InputError
from muserve.gpu.virtual import VirtualRun
from muserve.weightless import missing_weights

OPT = {
    "model_type": "opt",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "ffn_dim": 128,
    "vocab_size": 199,
    "max_position_embeddings": 64,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 199,
    "max_position_embeddings": 64,
}
SWITCH = {
    "model_type": "switch_transformers",
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "num_experts": 3,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1,
    "vocab_size": 199,
}
PROMPTS = ([5], [7, 8, 9], [150, 3, 3, 77, 21, 9, 100, 42, 42, 1], list(range(30, 50)))


def decoder(config: dict[str, Any]) -> DecoderArchitecture:
    net = parse_generative(config, "config.json")
    assert isinstance(net, DecoderArchitecture)
    return net


def write_stage(directory: Path, prefill: onnx.ModelProto, decode: onnx.ModelProto) -> Settings:
    """Graphs as they lie in a Triton model's version directory."""
    (directory / "1").mkdir(parents=True)
    (directory / "1" / "prefill.onnx").write_bytes(prefill.SerializeToString())
    (directory / "1" / "decode.onnx").write_bytes(decode.SerializeToString())
    return Settings(model=directory.name, version="1", directory=directory, parameters={"weights_seed": "3"})


def chain(config: dict[str, Any], cuts: Sequence[int], tmp_path: Path) -> list[TokenStage]:
    name = "-".join(map(str, cuts)) or "whole"
    stages = layer_stages(decoder(config), cuts, "fp32")
    return [
        open_token_stage(
            write_stage(tmp_path / name / f"stage{i}", stage.prefill, stage.decode), RecordedMetrics()
        )
        for i, stage in enumerate(stages)
    ]


def answer(stages: Sequence[TokenStage], prompt: Sequence[int], tokens: int = 12) -> list[int]:
    return list(greedy_tokens(stages, prompt, tokens))


@pytest.mark.parametrize(("config", "cuts"), [(OPT, (2,)), (OPT, (1, 2, 3)), (LLAMA, (1, 3))])
def test_stages_give_the_greedy_tokens_of_the_whole(
    config: dict[str, Any], cuts: tuple[int, ...], tmp_path: Path
) -> None:
    whole, parts = chain(config, (), tmp_path), chain(config, cuts, tmp_path)
    assert len(parts) == len(cuts) + 1
    answers = [answer(whole, prompt) for prompt in PROMPTS]
    assert [answer(parts, prompt) for prompt in PROMPTS] == answers
    assert len({tuple(tokens) for tokens in answers}) == len(PROMPTS)
    assert all(len(set(tokens)) > 1 for tokens in answers)


def test_each_stage_holds_its_own_layers_and_nothing_else_crosses() -> None:
    first, second = layer_stages(decoder(OPT), (1,))
    assert (first.layers, second.layers) == (range(1), range(1, 4))
    assert [value.name for value in first.prefill.graph.output] == [
        *("hidden_states.1", "present_key.0", "present_value.0"),
    ]
    assert [value.name for value in second.decode.graph.input][:3] == [
        *("hidden_states.1", "past_key.1", "past_value.1"),
    ]
    held = [{tensor.name for tensor in missing_weights(stage.decode)} for stage in (first, second)]
    assert held[0] & held[1] == {"model.decoder.embed_tokens.weight"}  # OPT's head is its embedding
    whole = {tensor.name for tensor in missing_weights(step_graph(decoder(OPT), "decode"))}
    assert held[0] | held[1] == whole


@pytest.mark.parametrize("cuts", [(0,), (4,), (2, 2), (3, 1)])
def test_a_stage_without_layers_is_a_bug(cuts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="of 4 layers without any"):
        layer_stages(decoder(OPT), cuts)


def test_sequences_in_flight_do_not_see_each_other(tmp_path: Path) -> None:
    stages = chain(OPT, (2,), tmp_path)
    alone = [answer(stages, prompt) for prompt in PROMPTS[:2]]
    running = [greedy_tokens(stages, prompt, 12) for prompt in PROMPTS[:2]]
    turns = list(zip(*running, strict=True))
    assert [list(tokens) for tokens in zip(*turns, strict=True)] == alone
    assert not any(stage.sequences for stage in stages)


def test_an_answer_ends_at_its_end_token_or_when_the_caller_stops(tmp_path: Path) -> None:
    stages = chain(OPT, (2,), tmp_path)
    tokens = answer(stages, PROMPTS[2])
    end = next(token for token in tokens if token != tokens[0])
    assert list(greedy_tokens(stages, PROMPTS[2], 12, end)) == tokens[: tokens.index(end) + 1]
    with closing(greedy_tokens(stages, PROMPTS[0], 12)) as running:
        next(running)
        assert all(stage.sequences == (1,) for stage in stages)
    assert not any(stage.sequences for stage in stages)


def test_misuse_is_an_invalid_request(tmp_path: Path) -> None:
    (stage,) = chain(OPT, (), tmp_path)
    with pytest.raises(RequestError, match="sequence 4 has not begun"):
        stage.step(4, np.array([[1]]))
    stage.read(4, np.array([[1, 2]]))
    with pytest.raises(RequestError, match="sequence 4 has begun already") as caught:
        stage.read(4, np.array([[1, 2]]))
    assert caught.value.code is Code.INVALID_ARGUMENT
    with pytest.raises(RequestError, match="ONNX Runtime"):
        stage.step(4, np.array([[1.5]], np.float32))
    stage.step(4, np.array([[3]]))  # the refused token left the sequence as it was


def test_an_encoder_decoder_keeps_its_prompt_too(tmp_path: Path) -> None:
    net = parse_generative(SWITCH, "config.json")
    graphs = (step_graph(net, step, "fp32") for step in ("prefill", "decode"))
    stage = open_token_stage(write_stage(tmp_path / "switch", *graphs), RecordedMetrics())
    short = answer([stage], PROMPTS[2], 4)
    assert answer([stage], PROMPTS[2], 9)[:4] == short


class CountingGpu:
    """A GPU that is done at once and remembers what it was asked for."""

    def __init__(self) -> None:
        self.latencies_ms: list[float] = []

    def run(self, latency_ms: float, sensitivity: float, *, not_before_s: float | None = None) -> VirtualRun:
        self.latencies_ms.append(latency_ms)
        return VirtualRun(started_s=0.0, finished_s=0.0, gpu_s=latency_ms / 1000)


def test_a_virtual_gpu_is_charged_for_every_step(tmp_path: Path) -> None:
    device = CountingGpu()
    costs = tuple(VirtualCost(device=device, latency_ms=ms, sensitivity=0.5) for ms in (20.0, 3.0))
    net = decoder(OPT)
    graphs = (step_graph(net, step, "fp32") for step in ("prefill", "decode"))
    settings = write_stage(tmp_path / "m", *graphs)
    stage = open_token_stage(settings, RecordedMetrics(), (costs[0], costs[1]))
    answer([stage], PROMPTS[1], 3)
    stage.close()
    assert device.latencies_ms == [20.0, 3.0, 3.0]


def test_a_missing_graph_is_named(tmp_path: Path) -> None:
    net = decoder(OPT)
    settings = write_stage(tmp_path / "m", step_graph(net, "prefill"), step_graph(net, "decode"))
    (tmp_path / "m" / "1" / "decode.onnx").unlink()
    with pytest.raises(InputError, match=r"decode\.onnx: expected a readable ONNX file"):
        open_token_stage(settings, RecordedMetrics())
