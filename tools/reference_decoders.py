"""Hold the graphs of ``muplan.architecture`` to transformers, on small random networks of every family.

``largest_difference`` compares the logits of a prompt and of the decode steps after it. Needs the [train]
extra; ``tools/export_catalog.py`` runs it before it writes a graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
import transformers

from muplan.architecture.config import parse_generative
from muplan.architecture.generative import step_graph
from muserve.weightless import TRANSPOSED_SUFFIX, missing_weights
from muserve.weights import open_session

LARGEST_DIFFERENCE = 1e-4
DECODE_STEPS = 3
PROMPT_TOKENS = 40
VOCABULARY = 99

_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
}
_EXPERTS = {"num_local_experts": 6, "num_experts_per_tok": 3}
_LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SMALL: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 48, "n_layer": 2, "n_head": 6},
    "codegen": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "llama": _LLAMA | {"head_dim": 8, "rope_parameters": _LLAMA_3_ROPE},
    "mistral": _LLAMA | {"head_dim": 8},
    "mixtral": _LLAMA | _EXPERTS,
    "opt": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 32,
    },
    "qwen2": _LLAMA | {"tie_word_embeddings": True},
    "qwen3": _LLAMA | {"head_dim": 16},
    "qwen3_moe": _LLAMA
    | _EXPERTS
    | {"head_dim": 16, "moe_intermediate_size": 24, "norm_topk_prob": True, "mlp_only_layers": [1]},
    "switch_transformers": {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 4,
        "num_heads": 4,
        "num_experts": 3,
        "num_sparse_encoder_layers": 2,
        "num_sparse_decoder_layers": 2,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 32,
    },
}
"""Config values of a small network per ``model_type``; what they leave out has transformers' default."""


def largest_difference(model_type: str) -> float:
    """The largest difference of a logit between our graphs and transformers, over a prompt and its decode."""
    config = transformers.AutoConfig.for_model(
        model_type,
        vocab_size=VOCABULARY,
        bos_token_id=1,
        eos_token_id=2,
        **SMALL[model_type],
    )
    torch.manual_seed(0)
    auto = (
        transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    )
    network = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    net = parse_generative(config.to_dict(), model_type)
    prefill, decode = (_session(step_graph(net, step, "fp32"), network) for step in ("prefill", "decode"))
    prompt = np.random.default_rng(0).integers(3, VOCABULARY, (2, PROMPT_TOKENS))
    answer = np.zeros((2, 0), np.int64)
    results = _run(prefill, {"input_ids": prompt})
    caches: dict[str, np.ndarray] = {}
    differences = []
    for _ in range(DECODE_STEPS + 1):
        expected = _next_logits(network, prompt, answer)
        differences.append(float(np.abs(results.pop("logits") - expected).max()))
        chosen = expected.argmax(-1)[:, None]
        answer = np.concatenate([answer, chosen], axis=1)
        caches |= {name.replace("present", "past"): value for name, value in results.items()}
        results = _run(decode, {"input_ids": chosen, **caches})
    return max(differences)


def _next_logits(network: Any, prompt: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """What transformers expects after ``answer``, without any cache."""
    with torch.no_grad():
        if network.config.is_encoder_decoder:
            start = np.full((len(prompt), 1), network.config.pad_token_id)
            given = np.concatenate([start, answer], axis=1)
            output = network(torch.from_numpy(prompt), decoder_input_ids=torch.from_numpy(given))
        else:
            output = network(torch.from_numpy(np.concatenate([prompt, answer], axis=1)))
    return output.logits[:, -1].numpy()


def parameters(network: torch.nn.Module) -> dict[str, np.ndarray]:
    """All parameters under their names in weight files; transformers 5 fuses a layer's experts."""
    found = {}
    for name, parameter in network.named_parameters():
        values = parameter.detach().numpy()
        module, _, kind = name.rpartition(".")
        if kind == "gate_up_proj":
            for expert, matrix in enumerate(values):
                gate, up = np.split(matrix, 2)
                found[f"{module}.{expert}.gate_proj.weight"] = gate
                found[f"{module}.{expert}.up_proj.weight"] = up
        elif kind == "down_proj":
            found |= {f"{module}.{expert}.down_proj.weight": matrix for expert, matrix in enumerate(values)}
        else:
            found[name] = values
    if isinstance(network, transformers.MixtralForCausalLM):
        for ours, theirs in (
            ("mlp", "block_sparse_moe"),
            ("gate_proj", "w1"),
            ("up_proj", "w3"),
            ("down_proj", "w2"),
        ):
            found = {name.replace(f".{ours}.", f".{theirs}."): values for name, values in found.items()}
    return found


def weights(model: onnx.ModelProto, named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Data for every missing initialiser of ``model``; ``*`` in its name stands for each expert's index."""
    found = {}
    for tensor in missing_weights(model):
        name = tensor.name.removesuffix(TRANSPOSED_SUFFIX)
        values = (
            np.stack([named[name.replace("*", str(expert))] for expert in range(tensor.dims[0])])
            if "*" in name
            else named[name]
        )
        found[tensor.name] = values if name == tensor.name else np.swapaxes(values, -1, -2)
    return found


def _session(model: onnx.ModelProto, network: torch.nn.Module) -> Any:
    return open_session(model, weights(model, parameters(network)), threads=1)


def _run(session: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))
