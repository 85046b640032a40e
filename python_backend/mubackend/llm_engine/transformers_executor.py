"""The ``transformers`` executor: any causal language model of Hugging Face, in PyTorch, on CPU or CUDA.

Requests join and leave the running batch between two steps. A step is either the prefill of what has
come in, which gives those requests their first token, or one more token for every running request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mubackend.failure import invalid
from mubackend.llm_engine.executor import Output
from mubackend.llm_engine.job import Job
from mubackend.llm_engine.transformers_batch import CausalBatch
from mubackend.llm_engine.transformers_choice import TokenChoice
from mubackend.llm_engine.transformers_model import CausalModel
from mubackend.llm_engine.transformers_text import AnswerText


@dataclass(slots=True, eq=False, kw_only=True)
class _Sequence:
    """A running job: ``limit`` tokens are the most it may generate, ``last`` is the newest of them."""

    job: Job
    prompt: list[int]
    limit: int
    text: AnswerText
    choice: TokenChoice
    generated: int = 0
    last: int = 0


class TransformersExecutor:
    """``Executor`` for ``loaded``; the model's memory must hold ``slots`` answers of full length."""

    def __init__(self, loaded: CausalModel, slots: int) -> None:
        self._loaded = loaded
        self._slots = slots
        self._batch = CausalBatch(loaded.model)
        self._rows: list[_Sequence] = []  # as in _batch
        self._joining: list[_Sequence] = []
        self._refused: list[Output] = []

    @property
    def capacity(self) -> int:
        """The slots."""
        return self._slots

    def admit(self, jobs: Sequence[Job]) -> None:
        """Take in jobs; the next step is their prefill."""
        for job in jobs:
            sampling = job.request.sampling
            prompt = self._loaded.encode(job.request.prompt)
            room = self._loaded.max_tokens - len(prompt)
            if room < 1:
                failure = invalid(
                    f"text_input: expected a prompt of at most {self._loaded.max_tokens - 1} tokens, "
                    f"got {len(prompt)}"
                )
                self._refused.append(Output(job=job, tokens=0, final=True, failure=failure))
                continue
            sequence = _Sequence(
                job=job,
                prompt=prompt,
                limit=min(sampling.max_tokens, room),
                text=AnswerText(self._loaded.tokenizer, sampling),
                choice=TokenChoice(sampling, self._loaded.end_tokens),
            )
            self._joining.append(sequence)

    def step(self) -> list[Output]:
        """Prefill what has come in; without that, one token for every running job."""
        if self._refused:
            refused, self._refused = self._refused, []
            return refused
        if self._joining:
            fresh = self._joining
            scores = self._batch.join([sequence.prompt for sequence in fresh])
            self._joining = []
            self._rows += fresh
        elif self._rows:
            fresh = self._rows
            scores = self._batch.step([sequence.last for sequence in fresh])
        else:
            return []
        outputs = self._chosen(fresh, scores)
        ended = {output.job for output in outputs if output.final}
        self._keep([row for row in self._rows if row.job not in ended])
        return outputs

    def cancel(self, job: Job) -> None:
        """Take a job's row out of the batch."""
        self._joining = [sequence for sequence in self._joining if sequence.job is not job]
        self._refused = [output for output in self._refused if output.job is not job]
        self._keep([row for row in self._rows if row.job is not job])

    def idle(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Let go of the batch."""
        self._rows = []
        self._batch.clear()

    def _chosen(self, sequences: Sequence[_Sequence], scores: Any) -> list[Output]:
        likeliest = scores.argmax(-1).tolist()
        return [
            self._advance(sequence, sequence.choice.choose(scores[row], likeliest[row], sequence.generated))
            for row, sequence in enumerate(sequences)
        ]

    def _advance(self, sequence: _Sequence, token: int) -> Output:
        sequence.last = token
        sequence.generated += 1
        ends = token in self._loaded.end_tokens and not sequence.job.request.sampling.ignore_eos
        text = "" if ends else sequence.text.push(token)
        final = ends or sequence.text.stopped or sequence.generated == sequence.limit
        if final:
            text += sequence.text.rest()
        return Output(job=sequence.job, text=text, final=final)

    def _keep(self, rows: list[_Sequence]) -> None:
        if len(rows) < len(self._rows):
            kept = set(rows)
            # After a failed step the batch may have lost its rows; what is left of it is of no use then.
            if self._batch.rows == len(self._rows):
                self._batch.keep([place for place, row in enumerate(self._rows) if row in kept])
            else:
                self._batch.clear()
            self._rows = rows
