"""A tiny encoder for tests, in ONNX with a WordPiece tokenizer: no torch, no download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from muserve.encoder_score import ENCODER_FILE, IDS, MASK, SCORE, TOKENIZER_FILE

WORDS = ("write", "a", "long", "short", "story", "list", "yes", "no", "please", "##s", "?", ".")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def small_tokenizer() -> Tokenizer:
    """Lower-casing WordPiece over WORDS; ``[CLS] text [SEP]``."""
    vocabulary = {word: place for place, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def small_graph(seed: int = 0, inputs: tuple[str, str] = (IDS, MASK)) -> onnx.ModelProto:
    """Scores a prompt by the mean of one random number a token: ids, mask (b, l) -> score (b)."""
    size = len(SPECIAL) + len(WORDS)
    table = np.random.default_rng(seed).normal(5.0, 1.0, size).astype(np.float32)
    axes = ["batch", "sequence"]
    nodes = [
        helper.make_node("Gather", ["table", inputs[0]], ["values"]),
        helper.make_node("Cast", [inputs[1]], ["kept"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["values", "kept"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "axis"], ["sums"], keepdims=0),
        helper.make_node("ReduceSum", ["kept", "axis"], ["counts"], keepdims=0),
        helper.make_node("Div", ["sums", "counts"], [SCORE]),
    ]
    graph = helper.make_graph(
        nodes,
        "small_encoder",
        [helper.make_tensor_value_info(name, TensorProto.INT64, axes) for name in inputs],
        [helper.make_tensor_value_info(SCORE, TensorProto.FLOAT, ["batch"])],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model


def write_small_encoder(directory: Path, seed: int = 0) -> Path:
    """The two files of an encoder in ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / ENCODER_FILE).write_bytes(small_graph(seed).SerializeToString(deterministic=True))
    small_tokenizer().save(str(directory / TOKENIZER_FILE))
    return directory
