"""Fine-tuning a pretrained BERT-family encoder end to end to score prompts by their answers' length.

The score is trained on the standardised logarithm of the length (absolute error), optionally together
with a pairwise ranking loss on the score (RankNet, Burges et al. 2005) and five length classes as an
auxiliary task; only the score is kept. Batches hold prompts of like length, so little is padding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muplan.predictor.encoder_network import CLASS_PERCENTILES, build_network, require_torch
from muplan.predictor.encoder_source import Pretrained
from muserve.encoder_score import LONGEST_INPUT_TOKENS

Floats = NDArray[np.float64]
_BATCHES_A_BUCKET = 40
_SCORING_BATCH = 64
_LARGEST_GRADIENT = 1.0
_WEIGHT_DECAY = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to fine-tune. ``ranking`` and ``classes`` weigh the two auxiliary losses, 0 leaves one out."""

    epochs: int = 1
    batch: int = 32
    learning_rate: float = 1e-4
    head_learning_rate: float = 1e-3
    warm_up: float = 0.08
    ranking: float = 0.5
    classes: float = 0.3
    longest_tokens: int = LONGEST_INPUT_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What to learn from, or to check on: ``ids`` one token list a prompt, ``tokens`` answer lengths (n)."""

    ids: Sequence[Sequence[int]]
    tokens: Floats
    weight: Floats

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.tokens) == len(self.weight):
            raise ValueError("a lesson needs one length and one weight for each prompt")


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuned:
    """An encoder with its head, on the CPU; ``validation_tau`` is Kendall's tau after each epoch."""

    network: Any
    validation_tau: tuple[float, ...]
    settings: Settings = field(default_factory=Settings)


def fine_tune(
    source: Pretrained,
    learn: Lesson,
    check: Lesson,
    settings: Settings,
    seed: int,
    checkpoints: Path | None = None,
    on_progress: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> FineTuned:
    """Fine-tune ``source`` on ``learn``; deterministic by ``seed`` on one kind of machine.

    With ``checkpoints`` (a directory) the state after each epoch is kept there, and a later call with
    the same arguments goes on from the last one: to the same result on a CPU, on a GPU with other dropout.
    ``on_progress`` gets (what, prompts done, in all). Runs on a GPU when there is one.
    Raises InputError when PyTorch, transformers or SciPy is missing.
    """
    torch = require_torch()
    from scipy.stats import kendalltau

    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = build_network(source, np.log(learn.tokens)).to(device)
    batches_an_epoch = -(-len(learn.ids) // settings.batch)
    optimizer, schedule = _optimizer(network, settings, batches_an_epoch * settings.epochs)
    state_file = (
        None if checkpoints is None else checkpoints / _checkpoint_name(source, learn, settings, seed)
    )
    taus: list[float] = []
    if state_file is not None and state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["random"].cpu())
        taus = list(state["taus"])
    edges = np.percentile(learn.tokens, CLASS_PERCENTILES)
    losses = _Losses(torch, settings, np.log(learn.tokens), edges, device)
    for epoch in range(len(taus), settings.epochs):
        network.train()
        done = 0
        for rows in epoch_batches(
            [len(ids) for ids in learn.ids], settings.batch, np.random.default_rng((seed, epoch))
        ):
            with torch.autocast(device.type, torch.bfloat16, enabled=_fast_in_half(torch, device)):
                score, classes = network.score_and_classes(*_tensors(torch, learn.ids, rows, device))
            loss = losses.of(score, classes, learn.tokens[rows], learn.weight[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), _LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            done += len(rows)
            on_progress(f"encoder, epoch {epoch + 1} of {settings.epochs}", done, len(learn.ids))
        found = scores(network, check.ids)
        taus.append(float(kendalltau(found, check.tokens).statistic))
        if state_file is not None:
            _save(torch, state_file, network, optimizer, schedule, taus)
    return FineTuned(network=network.cpu().eval(), validation_tau=tuple(taus), settings=settings)


def scores(
    network: Any,
    ids: Sequence[Sequence[int]],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float32]:
    """The network's score of each token list, shape (n,)."""
    torch = require_torch()
    device = next(network.parameters()).device
    result = np.zeros(len(ids), np.float32)
    order = np.argsort([len(one) for one in ids], kind="stable")
    network.eval()
    with (
        torch.inference_mode(),
        torch.autocast(device.type, torch.bfloat16, enabled=_fast_in_half(torch, device)),
    ):
        for start in range(0, len(order), _SCORING_BATCH):
            rows = order[start : start + _SCORING_BATCH]
            result[rows] = network(*_tensors(torch, ids, rows, device)).float().cpu().numpy()
            on_progress(min(start + _SCORING_BATCH, len(order)), len(order))
    return result


def epoch_batches(
    lengths: Sequence[int], batch: int, random: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Every row once, in random order, but together with rows of like length."""
    order = random.permutation(len(lengths))
    of = np.asarray(lengths)
    batches = []
    for start in range(0, len(order), batch * _BATCHES_A_BUCKET):
        bucket = order[start : start + batch * _BATCHES_A_BUCKET]
        bucket = bucket[np.argsort(of[bucket], kind="stable")]
        batches += [bucket[place : place + batch] for place in range(0, len(bucket), batch)]
    for place in random.permutation(len(batches)):
        yield batches[place]


class _Losses:
    def __init__(self, torch: Any, settings: Settings, logs: Floats, edges: Floats, device: Any) -> None:
        self._torch, self._settings, self._edges, self._device = torch, settings, edges, device
        self._mean, self._scale = float(logs.mean()), float(logs.std()) or 1.0

    def of(self, score: Any, classes: Any, tokens: Floats, weight: Floats) -> Any:
        torch, settings = self._torch, self._settings
        target = self._tensor((np.log(tokens) - self._mean) / self._scale)
        weights = self._tensor(weight / weight.mean())
        score = score.float()
        loss = (weights * (score - target).abs()).mean()
        if settings.classes > 0.0:
            labels = torch.as_tensor(np.digitize(tokens, self._edges), device=self._device)
            entropy = torch.nn.functional.cross_entropy(classes.float(), labels, reduction="none")
            loss = loss + settings.classes * (weights * entropy).mean()
        if settings.ranking > 0.0 and len(tokens) > 1:
            # A pair counts as much as its lengths differ: the order of near ties is noise.
            apart = target.unsqueeze(1) - target.unsqueeze(0)
            surplus = score.unsqueeze(1) - score.unsqueeze(0)
            counts = apart.clamp(min=0.0)
            pairs = counts * torch.nn.functional.softplus(-2.0 * surplus)
            loss = loss + settings.ranking * pairs.sum() / counts.sum().clamp(min=1e-6)
        return loss

    def _tensor(self, values: Floats) -> Any:
        return self._torch.as_tensor(values, dtype=self._torch.float32, device=self._device)


def _optimizer(network: Any, settings: Settings, steps: int) -> tuple[Any, Any]:
    torch = require_torch()
    heads = {id(p) for head in (network.score, network.classes) for p in head.parameters()}
    groups = [
        {
            "params": [p for p in network.parameters() if (id(p) in heads) is head],
            "lr": settings.head_learning_rate if head else settings.learning_rate,
        }
        for head in (False, True)
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=_WEIGHT_DECAY, fused=True)
    warm = max(1, round(steps * settings.warm_up))

    def share(step: int) -> float:
        return min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def _tensors(
    torch: Any, ids: Sequence[Sequence[int]], rows: NDArray[np.int64], device: Any
) -> tuple[Any, Any]:
    longest = max(len(ids[row]) for row in rows)
    padded = np.zeros((len(rows), longest), np.int64)
    mask = np.zeros_like(padded)
    for place, row in enumerate(rows):
        padded[place, : len(ids[row])] = ids[row]
        mask[place, : len(ids[row])] = 1
    return torch.from_numpy(padded).to(device), torch.from_numpy(mask).to(device)


def _fast_in_half(torch: Any, device: Any) -> bool:
    """bfloat16 halves the time, but only on hardware that multiplies in it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _save(torch: Any, file: Path, network: Any, optimizer: Any, schedule: Any, taus: Sequence[float]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    state = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "random": torch.get_rng_state(),
        "taus": list(taus),
    }
    torch.save(state, partial)
    partial.replace(file)


def _checkpoint_name(source: Pretrained, learn: Lesson, settings: Settings, seed: int) -> str:
    digest = hashlib.sha256(repr((source.name, sorted(asdict(settings).items()), seed)).encode())
    digest.update(learn.tokens.tobytes())
    digest.update(learn.weight.tobytes())
    for ids in learn.ids:
        digest.update(np.asarray(ids, np.int32).tobytes())
    return f"encoder-{digest.hexdigest()[:16]}.pt"
