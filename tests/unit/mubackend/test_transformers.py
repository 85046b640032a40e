from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="the transformers executor needs torch")
pytest.importorskip("transformers", reason="the transformers executor needs transformers")

import torch

from mubackend.failure import Code
from mubackend.llm_engine.job import Job
from mubackend.llm_engine.request import GenerationRequest
from mubackend.llm_engine.transformers_batch import CausalBatch
from mubackend.llm_engine.transformers_executor import TransformersExecutor
from mubackend.llm_engine.transformers_model import CausalModel, load_causal_model
from mubackend.llm_engine.transformers_text import Detokenizer
from mubackend.sampling import Sampling
from muserve.errors import InputError
from tiny_llm import MAX_TOKENS, write_model

FAMILIES = ("llama", "mistral", "gpt2", "opt")
GREEDY = Sampling(temperature=0.0, max_tokens=24)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CausalModel]:
    torch.set_num_threads(1)
    loaded = {}
    for family in FAMILIES:
        directory = tmp_path_factory.mktemp(family)
        write_model(directory, family)
        loaded[family] = load_causal_model(directory, None, None)
    return loaded


@pytest.fixture
def llama(models: dict[str, CausalModel]) -> CausalModel:
    return models["llama"]


@dataclass
class Client:
    """Collects an answer; ``Reply``."""

    text: str = ""
    pieces: list[str] = field(default_factory=list)

    def send(self, text: str, *, final: bool) -> None:
        self.pieces.append(text)
        self.text += text

    def fail(self, code: Code, message: str) -> None:
        self.text = f"{code}: {message}"

    def cancelled(self) -> bool:
        return False


def job(prompt: str, sampling: Sampling, number: int = 1) -> Job:
    request = GenerationRequest(prompt=prompt, stream=True, prepend_prompt=False, sampling=sampling)
    return Job(request=request, reply=Client(), number=number, arrival_ms=0, undecided_until_s=0.0)


def run(executor: TransformersExecutor, *jobs: Job) -> None:
    """Steps until ``jobs`` have ended."""
    while not all(job.ended for job in jobs):
        step(executor)


def step(executor: TransformersExecutor) -> int:
    outputs = executor.step()
    assert outputs, "a step with running jobs makes something of them"
    for output in outputs:
        if output.failure:
            output.job.fail(output.failure.code, str(output.failure))
        else:
            output.job.deliver(output.text, output.tokens, final=output.final)
    return len(outputs)


def answer(loaded: CausalModel, prompt: str, sampling: Sampling) -> tuple[str, int]:
    executor, alone = TransformersExecutor(loaded, 1), job(prompt, sampling)
    executor.admit([alone])
    run(executor, alone)
    return alone.reply.text, alone.sent  # type: ignore[attr-defined]


def generated(loaded: CausalModel, prompt: str, tokens: int) -> list[int]:
    """What transformers itself generates greedily."""
    ids = torch.tensor([loaded.encode(prompt)])
    mask = torch.ones_like(ids)
    whole = loaded.model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=tokens, pad_token_id=1
    )
    made: list[int] = whole[0, ids.shape[1] :].tolist()
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_alone_it_answers_as_transformers_generate_does(models: dict[str, CausalModel], family: str) -> None:
    loaded = models[family]
    for prompt in ("the heron", "a fish of the water and the other"):
        tokens = generated(loaded, prompt, 24)
        text, count = answer(loaded, prompt, GREEDY)
        assert count == len(tokens)
        decoded = loaded.tokenizer.decode(tokens, skip_special_tokens=True)
        assert text == decoded.rstrip("\ufffd")


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arrivals=st.lists(
        st.tuples(
            st.integers(0, 12),  # the step it joins at
            st.integers(1, 20),  # tokens of the answer
            st.text("the heron ", min_size=1, max_size=40),
            st.integers(0, 25),  # the step its client goes at
        ),
        min_size=1,
        max_size=7,
    )
)
def test_company_changes_nobodys_answer(
    models: dict[str, CausalModel], family: str, arrivals: list[tuple[int, int, str, int]]
) -> None:
    """Continuous batching against one at a time, with requests that join, end and are cancelled anywhere."""
    loaded = models[family]
    executor = TransformersExecutor(loaded, len(arrivals))
    jobs = [
        job(prompt, replace(GREEDY, max_tokens=tokens), number)
        for number, (_, tokens, prompt, _) in enumerate(arrivals)
    ]
    gone: set[int] = set()
    for now in range(60):
        executor.admit([jobs[n] for n, (joins, *_) in enumerate(arrivals) if joins == now])
        for n, (joins, _, _, goes) in enumerate(arrivals):
            if joins < goes == now and not jobs[n].ended:
                executor.cancel(jobs[n])
                gone.add(n)
        if any(not job.ended for n, job in enumerate(jobs) if arrivals[n][0] <= now and n not in gone):
            step(executor)
    for n, (_, tokens, prompt, _) in enumerate(arrivals):
        alone, count = answer(loaded, prompt, replace(GREEDY, max_tokens=tokens))
        text: str = jobs[n].reply.text  # type: ignore[attr-defined]
        assert (text, jobs[n].sent) == (alone, count) if n not in gone else alone.startswith(text)


def test_a_step_of_scores_does_not_depend_on_padding(llama: CausalModel) -> None:
    prompts = [llama.encode("the heron"), llama.encode("a"), llama.encode("the other fish in the water")]
    together = CausalBatch(llama.model)
    joined = together.join(prompts)
    stepped = together.step([5, 6, 7])
    together.keep([1])
    assert together._mask.shape == (1, len(prompts[1]) + 1), "columns that nobody needs go"
    left = together.step([8])
    for row, prompt in enumerate(prompts):
        alone = CausalBatch(llama.model)
        torch.testing.assert_close(alone.join([prompt])[0], joined[row])
        torch.testing.assert_close(alone.step([5 + row])[0], stepped[row])
        if row == 1:
            torch.testing.assert_close(alone.step([8])[0], left[0])


def test_the_same_seed_gives_the_same_answer_in_any_company(llama: CausalModel) -> None:
    warm = Sampling(max_tokens=20, temperature=1.5, top_p=0.95, top_k=40, seed=7)
    alone, _ = answer(llama, "the heron", warm)
    executor = TransformersExecutor(llama, 3)
    first, second, third = (
        job("a fish", replace(warm, seed=1)),
        job("the heron", warm),
        job("the heron", replace(warm, seed=8)),
    )
    executor.admit([first])
    step(executor)
    executor.admit([second, third])
    run(executor, first, second, third)
    assert second.reply.text == alone  # type: ignore[attr-defined]
    assert third.reply.text != alone  # type: ignore[attr-defined]


def test_top_k_of_one_is_greedy(llama: CausalModel) -> None:
    one = Sampling(max_tokens=16, temperature=2.0, top_k=1)
    narrow = Sampling(max_tokens=16, temperature=2.0, top_p=1e-9)
    greedy = answer(llama, "the heron", replace(GREEDY, max_tokens=16))
    assert answer(llama, "the heron", one) == answer(llama, "the heron", narrow) == greedy


class Scripted:
    """A model's tokens, whatever it reads: to end answers where the test wants."""

    def __init__(self, loaded: CausalModel, tokens: Sequence[int]) -> None:
        self.loaded, self.tokens, self.made = loaded, list(tokens), 0

    def __enter__(self) -> CausalModel:
        def scripted(_module: object, _inputs: object, output: object) -> object:
            output.logits[:] = -1.0  # type: ignore[attr-defined]
            output.logits[:, -1, self.tokens[self.made % len(self.tokens)]] = 1.0  # type: ignore[attr-defined]
            self.made += 1
            return output

        self.hook = self.loaded.model.register_forward_hook(scripted)
        return self.loaded

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


def ids(loaded: CausalModel, text: str) -> list[int]:
    found: list[int] = loaded.tokenizer(text)["input_ids"]
    return found


@pytest.mark.parametrize(
    ("sampling", "text"),
    [
        (GREEDY, "the fish"),
        (replace(GREEDY, ignore_eos=True, max_tokens=11), None),
        (replace(GREEDY, min_tokens=9, max_tokens=9), None),
        (replace(GREEDY, stop=(" f",)), "the"),
        (replace(GREEDY, stop=("e f",), include_stop=True), "the f"),
        (replace(GREEDY, stop=("fishes",)), "the fish"),
    ],
)
def test_the_end_token_and_stop_strings_end_an_answer(
    llama: CausalModel, sampling: Sampling, text: str | None
) -> None:
    words = ids(llama, "the fish")
    with Scripted(llama, [*words, 0]) as scripted:
        got, count = answer(scripted, "a", sampling)
    if text is None:
        assert count == sampling.max_tokens
    else:
        assert got == text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_stream_of_tokens_is_the_text_of_all_and_never_cuts_a_character(
    llama: CausalModel, data: st.DataObject
) -> None:
    tokens = data.draw(
        st.one_of(
            st.text(max_size=20).map(lambda text: ids(llama, text)),
            st.lists(st.integers(1, len(llama.tokenizer) - 1), max_size=40),
        )
    )
    detokenizer = Detokenizer(llama.tokenizer)
    pieces = [detokenizer.push(token) for token in tokens]
    whole = llama.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert not any(piece.endswith("\ufffd") for piece in pieces)
    assert "".join(pieces) + detokenizer.rest() == whole.rstrip("\ufffd")


def test_an_emoji_comes_whole_with_its_last_token(llama: CausalModel) -> None:
    with Scripted(llama, ids(llama, "é🐦")) as scripted:
        executor, stream = TransformersExecutor(scripted, 1), job("a", replace(GREEDY, max_tokens=6))
        executor.admit([stream])
        run(executor, stream)
    assert stream.reply.pieces == ["", "é", "", "", "", "🐦"]  # type: ignore[attr-defined]


def test_a_prompt_that_does_not_fit_is_refused_and_a_long_one_gets_what_is_left(llama: CausalModel) -> None:
    long = "\n" * (MAX_TOKENS - 3)
    assert answer(llama, long, replace(GREEDY, ignore_eos=True, max_tokens=99))[1] == 3
    text, _ = answer(llama, "\n" * MAX_TOKENS, GREEDY)
    assert text == "INVALID_ARG: text_input: expected a prompt of at most 511 tokens, got 512"


def test_after_a_failed_step_the_others_are_served(llama: CausalModel) -> None:
    executor, lost, kept = TransformersExecutor(llama, 2), job("the", GREEDY), job("the heron", GREEDY)
    executor.admit([lost])
    step(executor)

    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    hook = llama.model.register_forward_pre_hook(broken)
    executor.admit([kept])
    with pytest.raises(RuntimeError):
        executor.step()
    hook.remove()
    executor.cancel(lost)
    executor.cancel(kept)
    executor.admit([kept])
    run(executor, kept)
    assert (kept.reply.text, kept.sent) == answer(llama, "the heron", GREEDY)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda directory: shutil.rmtree(directory), "expected a Hugging Face model, it has no config.json"),
        (lambda directory: (directory / "config.json").write_text("{}"), "expected a causal language model"),
        (lambda directory: (directory / "model.safetensors").unlink(), "expected a causal language model"),
    ],
)
def test_what_is_no_model_is_one_sentence(
    tmp_path: Path, spoil: Callable[[Path], object], complaint: str
) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    write_model(directory, "gpt2")
    spoil(directory)
    with pytest.raises(InputError, match=complaint) as caught:
        load_causal_model(directory, None, None)
    assert "\n" not in str(caught.value)


def test_a_model_with_recurrent_state_is_refused(tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    from tiny_llm import write_tokenizer

    vocabulary = write_tokenizer(tmp_path)
    MambaForCausalLM(
        MambaConfig(vocab_size=vocabulary, hidden_size=16, num_hidden_layers=1, state_size=4)
    ).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"use engine vllm|does not run"):
        load_causal_model(tmp_path, None, None)
