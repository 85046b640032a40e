"""A tiny BERT with random weights as a Hugging Face directory; importing it needs torch."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers

from muserve.encoder_score import TOKENIZER_FILE
from small_encoder import SPECIAL, WORDS, small_tokenizer


def write_small_pretrained(directory: Path) -> Path:
    """One layer of 16 over the vocabulary of ``small_encoder``."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(directory)
    small_tokenizer().save(str(directory / TOKENIZER_FILE))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names})
    )
    return directory
