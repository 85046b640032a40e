"""A causal language model from a directory in the format of Hugging Face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mubackend.llm_engine.transformers_batch import CausalBatch, is_batchable
from muserve.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class CausalModel:
    """A loaded model. ``end_tokens`` end an answer; ``max_tokens`` is the most it reads and writes in all."""

    model: Any
    tokenizer: Any
    end_tokens: frozenset[int]
    max_tokens: int

    def encode(self, prompt: str) -> list[int]:
        """The prompt's tokens, with what the tokenizer puts before a text; at least one."""
        tokens: list[int] = self.tokenizer(prompt)["input_ids"]
        return tokens or [min(self.end_tokens, default=0)]


def load_causal_model(directory: Path, cuda_device: int | None, max_tokens: int | None) -> CausalModel:
    """The model on the CUDA device of that index, or on the CPU, where half precision becomes float32.

    ``max_tokens`` lowers the model's own limit. InputError when torch or transformers is missing, the
    directory has no causal language model, or its cache is not one of keys and values only.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise InputError(
            f"engine transformers needs the packages torch and transformers where Triton runs: {error}"
        ) from error
    if cuda_device is not None and not torch.cuda.is_available():
        raise InputError(f"engine transformers: the plan has GPU {cuda_device}, but torch finds no CUDA")
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory}: expected a Hugging Face model, it has no config.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{directory}: expected a causal language model: {first_line}") from error
    if cuda_device is None:
        model = model.float() if model.dtype in (torch.float16, torch.bfloat16) else model
    else:
        model = model.to(f"cuda:{cuda_device}")
    model.eval()
    loaded = CausalModel(
        model=model,
        tokenizer=tokenizer,
        end_tokens=_end_tokens(model, tokenizer),
        max_tokens=_limit(model.config, max_tokens),
    )
    _check_cache(loaded, directory)
    return loaded


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    for owner in (model.generation_config, model.config, tokenizer):
        tokens: int | Sequence[int] | None = getattr(owner, "eos_token_id", None)
        if tokens is not None:
            return frozenset((tokens,) if isinstance(tokens, int) else tokens)
    return frozenset()


def _limit(config: Any, asked: int | None) -> int:
    text_config = config.get_text_config()
    own = getattr(text_config, "max_position_embeddings", None)
    limits = [limit for limit in (own, asked) if limit]
    return min(limits, default=1_000_000)


def _check_cache(loaded: CausalModel, directory: Path) -> None:
    batch = CausalBatch(loaded.model)
    try:
        batch.join([loaded.encode("a")])
        fits = is_batchable(batch.cache)
    except Exception as error:
        raise InputError(f"{directory}: the model does not run: {type(error).__name__}: {error}") from error
    if not fits:
        raise InputError(
            f"{directory}: engine transformers batches models whose cache is keys and values by position, "
            f"{type(loaded.model).__name__} keeps something else: use engine vllm"
        )
