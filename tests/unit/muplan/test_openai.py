"""The OpenAI interface over plain HTTP, in front of a server that stands in for Triton."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_triton import FakeTriton, fake_triton, tensor, words
from muplan.openai.chat_form import CHATML, Message, chatml, read_chat_form
from muplan.openai.failure import ApiError
from muplan.openai.request import chat_ask, completion_ask
from muplan.openai.served import ServedModel, served_models
from muplan.openai.server import openai_endpoint
from muplan.repository.chat_template import chat_template_files
from muserve.errors import InputError
from muserve.plan import ModelKind
from replicated import write_spec
from sample_plans import sample_gpu, sample_model, sample_plan

EMOJI = "🎉 😀 𝄞 世界 ü"


@dataclass
class Endpoint:
    """The interface, and the server behind it."""

    port: int
    triton: FakeTriton

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, str, bytes]:
        """Status, content type and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, raw, {"Authorization": "Bearer none"})
        response = connection.getresponse()
        found = response.status, response.headers.get_content_type(), response.read()
        connection.close()
        return found

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        status, kind, content = self.call("POST", path, {"model": "llm"} | body)
        assert (status, kind) == (200, "application/json"), content
        answer: dict[str, Any] = json.loads(content)
        return answer

    def stream(self, path: str, **body: Any) -> list[Any]:
        """The events; the last one, ``[DONE]``, is checked and left out."""
        status, kind, content = self.call("POST", path, {"model": "llm", "stream": True} | body)
        assert (status, kind) == (200, "text/event-stream"), content
        *events, done, rest = content.decode().split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]

    def sampling(self) -> dict[str, Any]:
        """What the engine was asked last."""
        found: dict[str, Any] = json.loads(tensor(self.triton.seen[-1], "sampling_parameters")[0])
        return found


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    model = ServedModel(
        name="llm", entrance="llm_engine", form=CHATML, count_tokens=lambda text: len(text.split())
    )
    with fake_triton() as (triton, url), openai_endpoint({"llm": model}, url, "127.0.0.1", 0) as port:
        triton.go.set()
        yield Endpoint(port, triton)


CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]


def test_a_chat_is_answered_whole(endpoint: Endpoint) -> None:
    answer = endpoint.ask(CHAT, messages=HI, max_completion_tokens=50, temperature=0.5, seed=7, stop="END")
    prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tensor(endpoint.triton.seen[0], "text_input") == [prompt.encode()]
    assert endpoint.triton.seen[0].model_name == "llm_engine"
    assert endpoint.sampling() == {
        "max_tokens": 50, "stop": ["END", "<|im_end|>"], "temperature": 0.5, "seed": 7
    }  # fmt: skip
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "".join(words(prompt)), "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert (answer["object"], answer["model"]) == ("chat.completion", "llm")
    assert answer["id"].startswith("chatcmpl-")
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}


def test_a_chat_streams_role_pieces_end_and_usage(endpoint: Endpoint) -> None:
    events = endpoint.stream(CHAT, messages=HI, stream_options={"include_usage": True}, max_tokens=3)
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [delta["content"] for delta in deltas[1:-1]] == words(CHATML.render(HI))
    assert deltas[-1] == {}
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * 4 + ["length"]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["total_tokens"] == 6
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1


def test_a_completion_is_answered_whole_and_streamed(endpoint: Endpoint) -> None:
    answer = endpoint.ask(COMPLETIONS, prompt="a b c")
    assert answer["object"] == "text_completion"
    assert answer["choices"][0] == {
        "text": "a b c ", "index": 0, "logprobs": None, "finish_reason": "stop"
    }  # fmt: skip
    assert endpoint.sampling() == {"max_tokens": 16}
    events = endpoint.stream(COMPLETIONS, prompt=["a b c"], echo=True, max_tokens=3)
    assert [event["choices"][0]["text"] for event in events] == ["a b c", "a ", "b ", "c ", ""]
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert "usage" not in events[-1]


def test_four_byte_characters_are_never_cut(endpoint: Endpoint) -> None:
    assert endpoint.ask(COMPLETIONS, prompt=EMOJI)["choices"][0]["text"] == "".join(words(EMOJI))
    events = endpoint.stream(COMPLETIONS, prompt=EMOJI)
    assert [event["choices"][0]["text"] for event in events[:-1]] == words(EMOJI)
    half = endpoint.ask(COMPLETIONS, prompt="\ud83d alone")
    assert half["choices"][0]["text"] == "? alone ", "half a surrogate pair is no character"


def test_models_are_listed(endpoint: Endpoint) -> None:
    listed = json.loads(endpoint.call("GET", "/v1/models")[2])
    assert [entry["id"] for entry in listed["data"]] == ["llm"]
    assert json.loads(endpoint.call("GET", "/v1/models/llm")[2]) == listed["data"][0]
    assert endpoint.call("GET", "/v1/models/gone")[0] == 404


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        (b"{", 400, None, "expected a body of JSON"),
        ([], 400, None, "expected a body with a JSON object"),
        ({}, 400, "model", "model: expected the name of a model"),
        ({"model": "gone", "messages": HI}, 404, "model", "The model 'gone' does not exist"),
        ({"model": "llm"}, 400, "messages", "messages: Field required"),
        ({"model": "llm", "messages": []}, 400, "messages", "at least 1 item"),
        ({"model": "llm", "messages": [{"role": "tool", "content": "x"}]}, 400, "messages", ".0.role"),
        ({"model": "llm", "messages": HI, "max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
        ({"model": "llm", "messages": HI, "temperature": 3}, 400, "temperature", "less than or equal to 2"),
        ({"model": "llm", "messages": HI, "n": 2}, 400, "n", "n: not supported here, got 2"),
        ({"model": "llm", "messages": HI, "tools": [{}]}, 400, "tools", "tools: not supported here"),
        ({"model": "llm", "messages": HI, "stop": list("abcde")}, 400, "stop", "at most 4 items"),
    ],
)  # fmt: skip
def test_bad_bodies_are_openais_errors(
    endpoint: Endpoint, body: Any, status: int, param: str | None, message: str
) -> None:
    found, kind, content = endpoint.call("POST", CHAT, body)
    assert (found, kind) == (status, "application/json")
    error = json.loads(content)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert message in error["message"]
    assert endpoint.triton.seen == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 400),
        (grpc.StatusCode.UNAVAILABLE, 503),
        (grpc.StatusCode.INTERNAL, 500),
    ],
)
def test_tritons_errors_keep_their_sentence(
    endpoint: Endpoint, code: grpc.StatusCode, status: int, stream: bool
) -> None:
    endpoint.triton.refusals["x"] = (code, "the queue of llm is full")
    found, _, content = endpoint.call("POST", COMPLETIONS, {"model": "llm", "prompt": "x", "stream": stream})
    assert found == status
    assert "the queue of llm is full" in json.loads(content)["error"]["message"]


def test_unknown_routes_answer_json(endpoint: Endpoint) -> None:
    status, kind, content = endpoint.call("GET", "/v1/embeddings")
    assert (status, kind) == (404, "application/json")
    assert json.loads(content)["error"]["message"] == "/v1/embeddings: Not Found"


def test_a_client_that_hangs_up_cancels_its_request(endpoint: Endpoint) -> None:
    endpoint.triton.go.clear()
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port)
    connection.request("POST", COMPLETIONS, json.dumps({"model": "llm", "prompt": "gone", "stream": True}))
    until(lambda: endpoint.triton.seen)
    connection.close()
    until(lambda: endpoint.triton.cancelled == ["gone"])


def test_streams_do_not_wait_for_each_other(endpoint: Endpoint) -> None:
    """One whose client reads nothing and one that has no token yet do not hold up a third."""
    slow = http.client.HTTPConnection("127.0.0.1", endpoint.port)
    slow.request(
        "POST", COMPLETIONS, json.dumps({"model": "llm", "prompt": "word " * 300_000, "stream": True})
    )
    until(lambda: endpoint.triton.seen)
    started_s = time.monotonic()
    for _ in range(5):
        assert len(endpoint.stream(COMPLETIONS, prompt="a b c")) == 4
    assert time.monotonic() - started_s < 3.0
    slow.close()


def until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), TEXTS), min_size=1, max_size=5))
def test_every_message_is_in_the_prompt_in_order(turns: Sequence[tuple[str, str]]) -> None:
    messages: list[Message] = [{"role": role, "content": text} for role, text in turns]
    prompt = chatml(messages)
    at = 0
    for role, text in turns:
        turn = f"<|im_start|>{role}\n{text}<|im_end|>\n"
        at = prompt.index(turn, at) + len(turn)
    assert prompt[at:] == "<|im_start|>assistant\n"


def test_parts_and_developers_become_plain_messages() -> None:
    document = {
        "model": "llm",
        "messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ],
        "top_k": 5,
        "ignore_eos": True,
        "user": "somebody",
    }
    ask = chat_ask(document, CHATML)
    assert ask.prompt == CHATML.render([
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "ab"}
    ])  # fmt: skip
    sampling = json.loads(ask.sampling)
    assert (sampling["top_k"], sampling["ignore_eos"], sampling["max_tokens"]) == (5, True, 1024)
    assert "user" not in sampling
    with pytest.raises(ApiError, match="suffix: not supported"):
        completion_ask({"model": "llm", "prompt": "x", "suffix": "y"})


class TestChatTemplate:
    OWN = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}[{{ m.role }}] {{ m.content | trim }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )

    def write(self, file: Path, template: str) -> Path:
        file.write_text(json.dumps({"template": template, "bos_token": "<s>", "eos_token": "</s>"}))
        return file

    def test_the_models_own_is_used(self, tmp_path: Path) -> None:
        form = read_chat_form(self.write(tmp_path / "llm.json", self.OWN))
        assert form.render(HI) == "<s>[user] hi</s>[assistant]"
        assert form.stop == ()
        with pytest.raises(ApiError, match="no system"):
            form.render([{"role": "system", "content": "x"}])

    def test_without_one_it_is_chatml(self, tmp_path: Path) -> None:
        assert read_chat_form(tmp_path / "none.json") is CHATML

    def test_a_template_cannot_leave_the_sandbox(self, tmp_path: Path) -> None:
        form = read_chat_form(self.write(tmp_path / "llm.json", "{{ ''.__class__.__mro__ }}"))
        with pytest.raises(ApiError, match="unsafe"):
            form.render(HI)

    def test_a_broken_one_is_one_sentence(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"llm\.json: expected a chat template that Jinja compiles"):
            read_chat_form(self.write(tmp_path / "llm.json", "{% if %}"))


def test_the_entrance_is_one_that_can_be_cancelled(tmp_path: Path) -> None:
    def entrance(target: str, *loaded: str) -> str:
        model = sample_model("llm", kind=ModelKind.GENERATIVE)
        plan = sample_plan([sample_gpu(0)], [model], target=target)
        return served_models(plan, tmp_path, loaded)["llm"].entrance

    assert entrance("embedded", "llm", "llm_engine") == "llm_engine"
    assert entrance("ngc", "llm", "llm_engine") == "llm"
    assert entrance("ngc", "llm", "llm_engine", "llm_front") == "llm_front"


def test_a_taken_port_is_one_sentence(endpoint: Endpoint) -> None:
    before = threading.active_count()
    with (
        pytest.raises(InputError, match=f"--openai-port: cannot listen on 127.0.0.1:{endpoint.port}"),
        openai_endpoint({}, "127.0.0.1:1", "127.0.0.1", endpoint.port),
    ):
        pass
    assert threading.active_count() <= before


class TestChatTemplateOfTheModel:
    TOKENIZER: ClassVar[dict[str, Any]] = {
        "chat_template": "own",
        "bos_token": {"content": "<s>"},
        "eos_token": "</s>",
    }

    def files(self, directory: Path, config: Any, **model: Any) -> dict[str, Any]:
        place = directory / "tokenizer"
        place.mkdir()
        (place / "tokenizer.json").write_text('{"model": {}}')
        if config is not None:
            (place / "tokenizer_config.json").write_text(json.dumps(config))
        llm = {
            "name": "llm",
            "source": "catalog:opt-1.3b",
            "kind": "generative",
            "slo_ms": 1000,
            "load": {"rate_rps": 1},
            "tokenizer": "tokenizer/tokenizer.json",
        }
        file = write_spec(directory, [llm | model])
        found = chat_template_files(file.spec.models[0], file)
        return {str(path): json.loads(content) for path, content in found.items()}

    def test_it_lies_beside_the_tokenizer(self, tmp_path: Path) -> None:
        expected = {"template": "own", "bos_token": "<s>", "eos_token": "</s>"}
        assert self.files(tmp_path, self.TOKENIZER) == {"chat_templates/llm.json": expected}

    def test_newer_ones_have_it_in_a_file_of_its_own(self, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "chat_template.jinja").write_text("newer")
        (tmp_path / "model" / "config.json").write_text('{"model_type": "opt"}')
        found = self.files(tmp_path, None, source="hf:model")
        assert found["chat_templates/llm.json"]["template"] == "newer"

    @pytest.mark.parametrize(
        ("template", "expected"),
        [
            ([{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}], "b"),
            (None, None),
            ([], None),
        ],
    )
    def test_of_several_the_default_is_taken(
        self, tmp_path: Path, template: Any, expected: str | None
    ) -> None:
        found = self.files(tmp_path, {"chat_template": template})
        assert [form["template"] for form in found.values()] == ([expected] if expected else [])

    def test_a_model_without_one_has_no_file(self, tmp_path: Path) -> None:
        assert self.files(tmp_path, None, tokenizer=None) == {}

    def test_a_broken_configuration_is_one_sentence(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"tokenizer_config\.json: expected a tokenizer's configuration"):
            self.files(tmp_path, [])
