"""What ``muplan predictor train --tier bert`` does beside what every training does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import Progress

from muserve.errors import InputError

if TYPE_CHECKING:
    from muplan.predictor.encoder_tier import EncoderTier


@contextmanager
def encoder_tier(
    tier: str, encoder: str | None, epochs: int | None, seed: int, output: Path, progress: Progress
) -> Iterator[EncoderTier | None]:
    """The encoder's part of the training of ``output``, shown on ``progress``; None for the ``fast`` tier.

    Checkpoints stay when the training fails, for the next one to go on from. Raises InputError for an
    encoder that there is no use for, that cannot be found, or when a training library is missing.
    """
    if tier == "fast":
        if encoder is not None or epochs is not None:
            raise InputError("--encoder and --encoder-epochs: expected --tier bert with them")
        yield None
        return
    from muplan.predictor.encoder_network import require_torch
    from muplan.predictor.encoder_source import DEFAULT_ENCODER, find_encoder
    from muplan.predictor.encoder_tier import EncoderTier, work_directory
    from muplan.predictor.encoder_training import Settings

    require_torch()
    work = work_directory(output)
    task = progress.add_task("encoder", total=None, start=False)

    def report(step: str, done: int, total: int) -> None:
        progress.start_task(task)
        progress.update(task, description=step, completed=done, total=total)

    settings = Settings() if epochs is None else Settings(epochs=epochs)
    source = find_encoder(encoder or DEFAULT_ENCODER, work)
    yield EncoderTier(source=source, seed=seed, work=work, settings=settings, on_progress=report)
    shutil.rmtree(work)
