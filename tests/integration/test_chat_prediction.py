"""A chat that a client sends as one templated text is predicted with its history, in the real Triton."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import pytest

import mubackend
from muserve.conversation import TEMPLATES, Conversation, Turn, render_conversation

pytest.importorskip("pytriton", reason="needs a real Triton: pip install 'muserve[triton]'")
pytestmark = [pytest.mark.triton, pytest.mark.timeout(180)]

ASKED = Turn("user", "Why is the sky blue?")
BRIEF, LENGTHY = "It is blue.", "It is blue because of how light is scattered in the air. " * 40


def predicted_tokens(server: Any, text: str) -> float:
    connection = http.client.HTTPConnection(urlsplit(server.http_url).netloc, timeout=60)
    try:
        tensor = {"name": "text_input", "shape": [1], "datatype": "BYTES", "data": [text]}
        body = json.dumps({"inputs": [tensor]})
        connection.request("POST", "/v2/models/opt-1.3b_length_predictor/infer", body)
        response = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    (value,) = (output["data"][0] for output in response["outputs"] if output["name"] == "predicted_tokens")
    return float(value)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_answers_so_far_decide(quickstart_server: Any, template: str) -> None:
    after = {}
    for answer in (BRIEF, LENGTHY):
        turns = (ASKED, Turn("assistant", answer), ASKED, Turn("assistant", answer))
        text = render_conversation(Conversation(turns, "And at night?"), template)
        after[answer] = predicted_tokens(quickstart_server, text)
    assert 2 * after[BRIEF] < after[LENGTHY], f"with {mubackend.__file__}"
