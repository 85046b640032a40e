"""Writing a trained predictor: its three files and a model card for people."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from muplan.predictor.formulations import CLASS_PERCENTILES
from muplan.predictor.labels import TOKEN_PIECES
from muplan.predictor.rows import PART_NAMES, Rows
from muplan.predictor.training import FIRST_ROUND_WEIGHT, Trained
from muserve.errors import InputError
from muserve.feature_groups import features_fingerprint
from muserve.length_features import HEAD_CHARS, TAIL_CHARS
from muserve.length_model import CARD_FILE, MODEL_FILE, LengthModel

READABLE_CARD_FILE = "MODEL_CARD.md"
FORMAT = 2
_ABOUT_PIECES = """, the one that the replay engine streams, so no tokenizer is needed and
  the label is exactly what the engine generates. On ShareGPT's answers of 2 to 1024 cl100k_base tokens there
  are 0.991 pieces a token on average, correlation 0.993."""
EXAMPLES = (
    "What is the capital of France? Answer with one word.",
    "Translate to German: The train is late again.",
    "Write a Python function that parses a date.",
    "Write a detailed 1000 words blog article about the history of the steam engine.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a predictor comes from, for its card."""

    data: str
    command: str
    seed: int


def check_writable(directory: Path) -> None:
    """Raise InputError if ``directory`` holds something that is not a predictor: it would be replaced."""
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: is a file, expected a directory to write the predictor to")
    if directory.is_dir() and any(directory.iterdir()) and not (directory / CARD_FILE).exists():
        raise InputError(f"{directory}: is not empty and holds no predictor, choose another directory")


def write_predictor(directory: Path, trained: Trained, rows: Rows, origin: Origin) -> None:
    """Write ``directory`` as a whole, beside it first, then swapped in; ``add_metrics`` completes it."""
    check_writable(directory)
    fresh = directory.with_name(directory.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    (fresh / MODEL_FILE).write_bytes(trained.model.SerializeToString(deterministic=True))
    for group in trained.groups:
        group.save(fresh)
    _write_card(fresh, _card(trained, rows, origin))
    shutil.rmtree(directory, ignore_errors=True)
    fresh.rename(directory)


def add_metrics(directory: Path, metrics: Mapping[str, Any]) -> None:
    """Put the figures of an evaluation, and a few predictions to recognise it by, into the cards."""
    model = LengthModel.load(directory)
    examples = {prompt: round(model.predict(prompt), 2) for prompt in EXAMPLES}
    _write_card(directory, {**model.card, "examples": examples, "metrics": dict(metrics)})


def size_bytes(directory: Path) -> int:
    """What the predictor's files take on disk."""
    return sum(file.stat().st_size for file in directory.iterdir() if file.is_file())


def _card(trained: Trained, rows: Rows, origin: Origin) -> dict[str, Any]:
    split = {
        name: {
            "prompts": int((rows.part == part).sum()),
            "first_round_prompts": int(((rows.part == part) & rows.first_round).sum()),
        }
        for part, name in enumerate(PART_NAMES)
    }
    return {
        "format": FORMAT,
        "date": date.today().isoformat(),
        "command": origin.command,
        "data": {
            "source": origin.data,
            "kept_answers": rows.preparation.cleaning.kept_answers,
            "token_unit": rows.preparation.tokenizer,
            "split": split,
        },
        "features": {
            "groups": {group.group: len(group.names) for group in trained.groups},
            "head_chars": HEAD_CHARS,
            "tail_chars": TAIL_CHARS,
            "fingerprint": features_fingerprint(trained.groups),
        },
        "training": {
            "seed": origin.seed,
            "formulation": trained.formulation,
            "trees": trained.trees,
            "first_round_weight": FIRST_ROUND_WEIGHT,
            "quantiles": list(trained.quantiles),
            "mean_tokens": round(trained.mean_tokens, 3),
            "class_percentiles": list(CLASS_PERCENTILES),
            "class_edges": np.round(trained.edges, 3).tolist(),
        },
        **trained.more_facts,
    }


def _write_card(directory: Path, card: Mapping[str, Any]) -> None:
    (directory / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n", "utf-8")
    (directory / READABLE_CARD_FILE).write_text(_readable(card), "utf-8")


def _readable(card: Mapping[str, Any]) -> str:
    data, features, training = card["data"], card["features"], card["training"]
    split = "\n".join(
        f"| {name} | {side['prompts']:,} | {side['first_round_prompts']:,} |"
        for name, side in data["split"].items()
    )
    groups = ", ".join(f"{count} `{name}`" for name, count in features["groups"].items())
    encoder = _readable_encoder(card.get("encoder"))
    return f"""# Model card: output-length predictor

Predicts the expected number of answer tokens from the prompt and, in a chat, the turns before it. Made for
ordering requests.

- Trained {card["date"]} by `{card["command"]}`, seed {training["seed"]}.
- Data: {data["source"]}; answers of {data["kept_answers"]}.
  The expected length is that of the model which wrote them (ShareGPT: ChatGPT): another served model needs
  its own data.
- Token unit: `{data["token_unit"]}`{_ABOUT_PIECES if data["token_unit"] == TOKEN_PIECES.name else "."}
- Split by conversation; conversations with the same opening prompt (up to case and white space) stay on one
  side. `single` figures are of the test side's opening prompts, `multi` of every test prompt with the turns
  before it; training, early stopping and calibration have not seen them.
- Model: {groups} features (text scores: ridge on hashed words and word pairs, out-of-fold in training) into
  {training["trees"]} boosted trees, formulation `{training["formulation"]}`.
{encoder}- Reads the first {features["head_chars"]:,} and last {features["tail_chars"]:,} characters
  of a prompt.
- History comes from the text itself where it is a chat in a known template (`muserve.conversation`): the
  lengths of the last 8 answers, and what the last turns look like. How long the history is, is not used.
- Weak: prompts in languages that ShareGPT hardly has; opening prompts, where there is no answer to go by; any
  model that answers at another length.

| side | prompts | opening prompts |
|---|---|---|
{split}
{_readable_examples(card.get("examples", {}))}{_readable_metrics(card.get("metrics"))}"""


def _readable_encoder(encoder: Mapping[str, Any] | None) -> str:
    if encoder is None:
        return ""
    prompts = encoder["opening_prompts"] + encoder["later_prompts"]
    taus = ", ".join(map(str, encoder["validation_tau"]))
    longest = encoder["settings"]["longest_tokens"]
    name = encoder["pretrained"]
    return f"""- Encoder: `{name}`, fine-tuned on {prompts:,} prompts of its part of the train side; the
  trees saw its score on the other part only ({encoder["trees_prompts"]:,} prompts). Reads {longest} tokens of
  the prompt, a quarter from its beginning, the rest from its end, and no history.
- Kendall tau of the score alone after each epoch (opening prompts of the validation side): {taus}.
  Int8 against fp32 scores: tau {encoder["int8_fp32_tau"]} on {encoder["int8_fp32_prompts"]} prompts.
"""


def _readable_examples(examples: Mapping[str, float]) -> str:
    lines = "".join(f"| {prompt} | {tokens:.0f} |\n" for prompt, tokens in examples.items())
    return f"\n| prompt | expected tokens |\n|---|---|\n{lines}" if lines else ""


def _readable_metrics(metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        return ""
    lines = "\n".join(f"| {name} | {shown(value)} |" for name, value in flat(metrics))
    return f"""
| figure | value |
|---|---|
{lines}

`captured`: share of the mean completion time that knowing the true lengths would save over first come, first
served; one simulated server, load 0.9, Gamma arrivals of CV 2, four seeds. `latency`: on
one thread of the machine that trained it; `cpu` is the thread's own time, `wall` adds its waiting for a core.
"""


def shown(value: float) -> str:
    """A figure for people: whole numbers whole, others with three decimals."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3f}"


def flat(metrics: Mapping[str, Any], above: str = "") -> list[tuple[str, float]]:
    """Nested figures as ("outer inner", value) pairs."""
    found: list[tuple[str, float]] = []
    for name, value in metrics.items():
        label = f"{above} {name}".strip()
        found += flat(value, label) if isinstance(value, Mapping) else [(label, float(value))]
    return found
