"""Causal language models small enough to make on the spot, in the format of Hugging Face. Need torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

END = "<|end|>"
MAX_TOKENS = 512
TEXT = "the heron and the other heron stand in the water and see a fish of the other water"


def write_tokenizer(directory: Path) -> int:
    """A byte-level tokenizer of about 300 tokens, the first of which ends an answer; gives their number."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE(unk_token=None))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        special_tokens=[END], initial_alphabet=ByteLevel.alphabet(), show_progress=False, vocab_size=300
    )
    tokenizer.train_from_iterator([TEXT] * 8, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(directory)
    return int(tokenizer.get_vocab_size())


def write_model(directory: Path, family: str = "llama", *, dtype: str = "float64", seed: int = 0) -> None:
    """A model of random weights and its tokenizer. In float64 no rounding can change the likeliest token."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, OPTConfig

    vocabulary = write_tokenizer(directory)
    common: dict[str, Any] = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 0}
    modern = common | {
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": MAX_TOKENS,
    }
    configs = {
        "llama": lambda: LlamaConfig(**modern),
        "mistral": lambda: MistralConfig(**modern, sliding_window=8),
        "gpt2": lambda: GPT2Config(**common, n_embd=32, n_layer=2, n_head=4, n_positions=MAX_TOKENS),
        "opt": lambda: OPTConfig(
            **common, pad_token_id=1, hidden_size=32, word_embed_proj_dim=32, ffn_dim=64,
            num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=MAX_TOKENS,
        ),
    }  # fmt: skip
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(configs[family](), dtype=getattr(torch, dtype))
    with torch.no_grad():
        for parameter in model.parameters():  # the usual small start makes every token as likely as another
            parameter.normal_(0.0, 0.3)
    model.save_pretrained(directory)
