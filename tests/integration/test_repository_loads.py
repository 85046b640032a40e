"""The generated quickstart on a real Triton: all of it loads, and the parts compute what the whole does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from muplan.catalog import load_graph
from muplan.repository.directory import REPOSITORY_NAME
from muserve.plan import read_plan
from muserve.weights import fill_weights, open_session

pytestmark = pytest.mark.triton

TOLERANCE = 1e-4


@pytest.fixture
def client(quickstart_server: Any) -> Any:
    with triton.InferenceServerClient(quickstart_server.grpc_url) as client:
        yield client


def test_every_model_of_the_repository_is_ready(quickstart_server: Any, client: Any) -> None:
    (repository,) = quickstart_server.plan_dir.glob(f"*/{REPOSITORY_NAME}")
    names = sorted(path.name for path in repository.iterdir())
    assert len(names) == 7
    assert [name for name in names if not client.is_model_ready(name)] == []


def test_clients_see_whole_models(quickstart_server: Any, client: Any) -> None:
    for model in read_plan(quickstart_server.plan_dir).models:
        metadata = client.get_model_metadata(model.name, as_json=True)
        taken = {tensor["name"] for tensor in metadata["inputs"]}
        assert taken, model.name
        if model.name == "bert-base":
            assert taken == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(("batch", "sequence"), [(1, 128), (2, 7)])
def test_split_bert_equals_the_whole_graph(client: Any, batch: int, sequence: int) -> None:
    draw = np.random.default_rng(sequence)
    tokens = draw.integers(0, 30_000, (batch, sequence), dtype=np.int64)
    mask = np.ones((batch, sequence), np.int64)
    mask[0, sequence // 2 :] = 0
    given = {"input_ids": tokens, "attention_mask": mask}

    answer = client.infer("bert-base", [_input(name, value) for name, value in given.items()])

    graph = load_graph("bert-base")
    session = open_session(graph, fill_weights(graph, seed=0), threads=1)
    names = [output.name for output in session.get_outputs()]
    assert names
    for name, expected in zip(names, session.run(names, given), strict=True):
        got = answer.as_numpy(name)
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() <= TOLERANCE
        assert np.abs(expected).max() > 100 * TOLERANCE, "an all-zero output would prove nothing"


def test_resnet_answers_with_the_weights_of_the_seed(client: Any) -> None:
    image = np.random.default_rng(1).standard_normal((1, 3, 224, 224), dtype=np.float32)
    graph = load_graph("resnet-50")
    session = open_session(graph, fill_weights(graph, seed=0), threads=1)

    answer = client.infer("resnet-50", [_input("pixel_values", image)]).as_numpy("logits")

    (expected,) = session.run(["logits"], {"pixel_values": image})
    assert np.abs(answer - expected).max() <= TOLERANCE * max(1.0, np.abs(expected).max())


def _input(name: str, value: np.ndarray[Any, Any]) -> Any:
    kind = {"int64": "INT64", "float32": "FP32"}[str(value.dtype)]
    tensor = triton.InferInput(name, value.shape, kind)
    tensor.set_data_from_numpy(value)
    return tensor
