"""What both targets write for real plans: instances, batching, warm-up, weights, and rules for any plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2

from muplan.cli import main
from muplan.pipeline import plan_spec
from muplan.repository.contention import oversubscribed_gpus
from muplan.repository.directory import Artefact, write_directory
from muplan.repository.model_config import parse_config
from muplan.spec import SpecFile
from muplan.spec_paths import engine_model
from muplan.splitting import save_model
from muserve.errors import InputError
from muserve.gpu.parts import load_part
from muserve.plan import ModelKind, Plan, read_plan
from muserve.weightless import strip_weights
from muserve.weights import embed_weights, fill_weights
from replicated import (
    replicated_files,
    rows_answer,
    staged_models,
    with_replicas,
    write_rows_onnx,
    write_spec,
)
from sample_plans import sample_gpu, sample_model, sample_partition, sample_plan

KINDS = model_config_pb2.ModelInstanceGroup
REPOSITORY = PurePosixPath("node0/model_repository")
PARTS = {"V100-16GB": load_part("V100-16GB")}
ROWS: dict[str, Any] = {
    "name": "rows",
    "source": "onnx:rows.onnx",
    "kind": "single-pass",
    "slo_ms": 100,
    "dims": {"batch": 1},
    "load": {"rate_rps": 1},
}
LLM: dict[str, Any] = {
    "name": "llm",
    "source": "catalog:opt-1.3b",
    "kind": "generative",
    "slo_ms": 60_000,
    "load": {"rate_rps": 0.1},
}
NGC: dict[str, Any] = {"virtual": False, "serving": {"target": "ngc"}}
VLLM = LLM | {"engine": {"slots": 4, "model": "facebook/opt-1.3b"}}


def spec(directory: Path, *models: Mapping[str, Any], **changes: Any) -> SpecFile:
    write_rows_onnx(directory / "rows.onnx", layers=3)
    return write_spec(directory, models, **changes)


def configs(files: Mapping[PurePosixPath, Artefact]) -> dict[str, Any]:
    """Triton model -> its parsed ``config.pbtxt``."""
    return {
        path.parent.name: parse_config(content)
        for path, content in files.items()
        if path.name == "config.pbtxt" and isinstance(content, bytes)
    }


def parameters(config: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


def groups(config: Any) -> list[tuple[int, int, list[int]]]:
    return [(group.kind, group.count, list(group.gpus)) for group in config.instance_group]


def engine_arguments(files: Mapping[PurePosixPath, Artefact]) -> dict[str, Any]:
    content = files[REPOSITORY / "llm_engine" / "1" / "model.json"]
    assert isinstance(content, bytes)
    arguments: dict[str, Any] = json.loads(content)
    return arguments


class TestNgcPartitions:
    def test_onnxruntime_runs_complete_partitions_on_the_planned_gpu(self, tmp_path: Path) -> None:
        file = spec(tmp_path, ROWS | {"partitions": 2}, **NGC)
        plan, files = replicated_files(file, {"rows_stage0": [(1,)], "rows_stage1": [(0,), (1,)]})
        made = configs(files)
        assert plan.target == "ngc"
        assert {name: made[name].backend for name in made} == {
            "rows": "",
            "rows_stage0": "onnxruntime",
            "rows_stage1": "onnxruntime",
        }
        assert groups(made["rows_stage0"]) == [(KINDS.KIND_GPU, 1, [1])]
        assert groups(made["rows_stage1"]) == [(KINDS.KIND_GPU, 1, [0]), (KINDS.KIND_GPU, 1, [1])]
        assert made["rows_stage1"].metric_tags["gpu"] == "node0/gpu0,node0/gpu1"
        assert parameters(made["rows_stage1"])["gpu"] == "node0/gpu0;node0/gpu1"
        assert "gpu_uuid" not in made["rows_stage1"].parameters
        assert not any(path.name == "model.py" for path in files)

        write_directory(tmp_path / "out", files)
        x = np.random.default_rng(3).standard_normal((2, 8)).astype(np.float32)
        values = {"x": x}
        for stage in ("rows_stage0", "rows_stage1"):
            session = onnxruntime.InferenceSession(tmp_path / "out" / REPOSITORY / stage / "1" / "model.onnx")
            (given_,), (made_,) = session.get_inputs(), session.get_outputs()
            values[made_.name] = session.run(None, {given_.name: values[given_.name]})[0]
        assert np.abs(values["y"] - rows_answer(tmp_path / "rows.onnx", x)).max() < 1e-4

    def test_warm_up_has_the_planned_sizes_and_version_and_cache_are_explicit(self, tmp_path: Path) -> None:
        _, files = replicated_files(spec(tmp_path, ROWS | {"dims": {"batch": 3}}, **NGC), {})
        config = configs(files)["rows"]
        (warm_up,) = config.model_warmup
        assert (warm_up.batch_size, list(warm_up.inputs["x"].dims)) == (1, [3, 8])
        assert warm_up.inputs["x"].zero_data
        assert warm_up.inputs["x"].data_type == model_config_pb2.TYPE_FP32
        assert config.version_policy.latest.num_versions == 1
        assert config.HasField("response_cache")
        assert not config.response_cache.enable

    @pytest.mark.parametrize("source", ["seed", "file", "own"])
    def test_weights_are_in_the_graph_and_the_config_says_which(self, tmp_path: Path, source: str) -> None:
        write_rows_onnx(tmp_path / "rows.onnx", layers=3)
        hollow = strip_weights(onnx.load(tmp_path / "rows.onnx"), largest_inline_bytes=0)
        (tmp_path / "hollow.onnx").write_bytes(hollow.SerializeToString())
        given_ = {f"w{n}": np.full((8, 8), n + 1, np.float32) for n in range(3)}
        np.savez(tmp_path / "w.npz", **given_)
        whole = {
            t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "rows.onnx").graph.initializer
        }
        model, expected, said = {
            "seed": (
                {"weights": {"seed": 7}},
                fill_weights(hollow, 7),
                "drawn from seed 7: answers have no meaning",
            ),
            "file": ({"weights": {"file": "w.npz"}}, given_, "w.npz"),
            "own": ({"source": "onnx:rows.onnx"}, whole, "the model's own"),
        }[source]
        file = write_spec(tmp_path, [{**ROWS, "source": "onnx:hollow.onnx", **model}], **NGC)
        _, files = replicated_files(file, {})
        assert parameters(configs(files)["rows"])["weights"] == said
        write_directory(tmp_path / "out", files)
        written = onnx.load(tmp_path / "out" / REPOSITORY / "rows" / "1" / "model.onnx")
        for tensor in written.graph.initializer:
            np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), expected[tensor.name])

    def test_a_graph_too_big_for_one_message_keeps_its_weights_beside_it(self, tmp_path: Path) -> None:
        write_rows_onnx(tmp_path / "rows.onnx", width=32)
        whole = onnx.load(tmp_path / "rows.onnx")
        hollow = strip_weights(whole, largest_inline_bytes=0)
        given_ = {t.name: onnx.numpy_helper.to_array(t) for t in whole.graph.initializer}
        written = embed_weights(hollow, {**given_, "w0": np.zeros((32, 32), np.float32)})
        file = tmp_path / "model.onnx"
        save_model(written, file, largest_bytes=1000)
        data = file.with_name("model.onnx.data")
        assert data.stat().st_mode == file.stat().st_mode
        x = np.ones((1, 32), np.float32)
        assert not onnxruntime.InferenceSession(file).run(None, {"x": x})[0].any(), "rows times zero"


class TestVllm:
    def test_an_engine_gets_its_share_of_the_plan(self, tmp_path: Path) -> None:
        plan, files = replicated_files(spec(tmp_path, VLLM, **NGC), {"llm_engine": [(1,), (0,)]})
        made = configs(files)
        assert set(made) == {"llm", "llm_engine"}, "nothing in vLLM's backend could use a prediction"
        engine = made["llm_engine"]
        assert (engine.backend, engine.max_batch_size) == ("vllm", 0)
        assert engine.model_transaction_policy.decoupled
        assert groups(engine) == [(KINDS.KIND_GPU, 1, [1]), (KINDS.KIND_GPU, 1, [0])]
        assert parameters(engine)["REPORT_CUSTOM_METRICS"] == "true"
        assert "first come, first served" in parameters(engine)["queue_order"]
        arguments = engine_arguments(files)
        share = arguments.pop("gpu_memory_utilization")
        partition = plan.models[0].partitions[0]
        assert partition.memory_bytes <= share * plan.gpus[0].memory_bytes <= partition.memory_bytes * 1.01
        assert arguments == {
            "model": "facebook/opt-1.3b",
            "dtype": "float16",
            "tensor_parallel_size": 1,
            "max_num_seqs": 4,
            "max_model_len": 2048,
            "scheduling_policy": "priority",
            "disable_log_stats": False,
        }

    def test_clients_see_the_inputs_of_target_embedded_and_those_of_tritons_front_end(
        self, tmp_path: Path
    ) -> None:
        _, ngc = replicated_files(spec(tmp_path, VLLM, **NGC), {})
        _, embedded = replicated_files(spec(tmp_path, LLM), {})
        ours, theirs = configs(ngc)["llm"], configs(embedded)["llm"]
        *common, asked_tokens, answered_tokens = ours.input
        assert (common, list(ours.output)) == (list(theirs.input), list(theirs.output))
        assert [asked_tokens.name, answered_tokens.name] == [
            "return_num_input_tokens",
            "return_num_output_tokens",
        ]
        assert asked_tokens.optional
        assert answered_tokens.optional

    def test_an_id_of_the_hub_is_loaded_by_that_name_and_a_directory_by_its_own(self, tmp_path: Path) -> None:
        file = spec(tmp_path, VLLM, **NGC)
        named = {"source": "hf:facebook/opt-1.3b", "engine": None}
        model = file.spec.models[0].model_copy(update=named)
        assert engine_model(model, file) == "facebook/opt-1.3b"
        (tmp_path / "facebook" / "opt-1.3b").mkdir(parents=True)
        with pytest.raises(InputError, match=r"engine\.model: expected .* for source hf:facebook/opt-1\.3b"):
            engine_model(model, file)

    def test_a_tensor_parallel_engine_chooses_its_devices_itself(self, tmp_path: Path) -> None:
        file = spec(tmp_path, VLLM, **NGC)
        _, files = replicated_files(file, {"llm_engine": [(0, 1)]})
        engine = configs(files)["llm_engine"]
        assert groups(engine) == [(KINDS.KIND_MODEL, 1, [])]
        assert parameters(engine)["GPU_DEVICE_IDS"] == "0,1"
        assert engine_arguments(files)["tensor_parallel_size"] == 2
        with pytest.raises(
            InputError, match=r"llm: target ngc serves one tensor-parallel replica .* 2 replicas"
        ):
            replicated_files(file, {"llm_engine": [(0, 1), (0, 1)]})

    @pytest.mark.parametrize(
        ("model", "changes", "expected"),
        [
            (LLM, NGC, "engine.model: expected a Hugging Face id or the path of a directory on the node"),
            (
                VLLM | {"source": "catalog:switch-base-16"},
                NGC,
                "source: catalog:switch-base-16 is an encoder-decoder, which vllm does not run: expected a",
            ),
            (
                VLLM | {"engine": {"name": "replay"}},
                NGC,
                "engine.name: target ngc has the engine vllm, got replay",
            ),
            (
                LLM,
                {"virtual": False},
                "engine.name: replay runs on virtual GPUs only, the cluster has real ones",
            ),
            (
                VLLM | {"engine": {"model": "a/b", "batching": "none", "slots": 1}},
                NGC,
                "engine.batching: target ngc knows no such key, expected target embedded",
            ),
            (VLLM, NGC | {"virtual": True}, "serving.target ngc runs on real GPUs, those of node node0 are"),
        ],
    )
    def test_what_the_target_cannot_serve_is_one_sentence(
        self, tmp_path: Path, model: dict[str, Any], changes: dict[str, Any], expected: str
    ) -> None:
        with pytest.raises(InputError) as caught:
            plan_spec(spec(tmp_path, model, **changes))
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)


class TestBatching:
    BATCHED = ROWS | {"partitions": 2, "batching": {"max_batch_size": 8, "max_queue_delay_ms": 1.5}}

    @pytest.mark.parametrize("world", [{}, NGC])
    def test_the_batch_axis_is_tritons(self, tmp_path: Path, world: dict[str, Any]) -> None:
        _, files = replicated_files(spec(tmp_path, self.BATCHED, **world), {})
        made = configs(files)
        for config in made.values():
            assert config.max_batch_size == 8
            assert [list(t.dims) for t in (*config.input, *config.output)] == [[8], [8]]
        for name in ("rows_stage0", "rows_stage1"):
            assert made[name].dynamic_batching.max_queue_delay_microseconds == 1500
        warm_ups = [(w.batch_size, list(w.inputs["x"].dims)) for w in made["rows_stage0"].model_warmup]
        assert warm_ups == ([(1, [8]), (8, [8])] if world else [])

    def test_a_row_more_costs_what_the_roofline_says(self, tmp_path: Path) -> None:
        plan, files = replicated_files(spec(tmp_path, self.BATCHED), {})
        for partition in plan.models[0].partitions:
            said = parameters(configs(files)[partition.name])
            assert float(said["latency_ms"]) == pytest.approx(partition.laws[0].latency_ms, rel=1e-6)
            assert 0 <= float(said["latency_ms_per_further_row"]) < partition.laws[0].latency_ms / 10

    def test_latency_is_of_one_row_when_the_plan_is_for_several(self, tmp_path: Path) -> None:
        bert = {
            "source": "catalog:bert-base",
            "name": "bert",
            "slo_ms": 900,
            "batching": {"max_batch_size": 8},
        }
        said = {}
        for rows in (1, 4):
            model = ROWS | bert | {"dims": {"batch": rows, "sequence": 64}}
            _, files = replicated_files(write_spec(tmp_path, [model]), {})
            said[rows] = parameters(configs(files)["bert"])
        assert float(said[4]["latency_ms"]) == pytest.approx(float(said[1]["latency_ms"]), rel=0.25)
        assert float(said[1]["latency_ms_per_further_row"]) > 0.1

    def test_a_tensor_without_the_batch_axis_is_named(self, tmp_path: Path) -> None:
        graph = helper.make_graph(
            [helper.make_node("Add", ["a", "b"], ["y"])],
            "sum",
            [
                helper.make_tensor_value_info("a", TensorProto.FLOAT, ["batch", 4]),
                helper.make_tensor_value_info("b", TensorProto.FLOAT, [4]),
            ],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        )
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "sum.onnx"
        )
        model = ROWS | {"source": "onnx:sum.onnx", "batching": {"max_batch_size": 8}}
        with pytest.raises(
            InputError, match=r"models\[0\] \(rows\): batching: expected every tensor .*, b begins with 4"
        ):
            plan_spec(write_spec(tmp_path, [model]))

    def test_a_generative_model_has_none(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="batching has no meaning for a generative model"):
            spec(tmp_path, LLM | {"batching": {"max_batch_size": 8}})


class TestContention:
    """A GPU is oversubscribed when time slicing alone makes a request miss its SLO."""

    def plan(self, slo_ms: float, gpus: tuple[str, ...] = ("node0/gpu0", "node0/gpu0")) -> Plan:
        gpu = sample_gpu(0, initial_clock_mhz=1380)
        models = [
            sample_model(name, slo_ms=slo_ms, partitions=(sample_partition(name, [where]),))
            for name, where in zip("ab", gpus, strict=True)
        ]
        return sample_plan([gpu, sample_gpu(1, initial_clock_mhz=1380)], models)

    def test_two_partitions_of_5_ms_take_10_ms_together(self) -> None:
        assert oversubscribed_gpus(self.plan(9.9), PARTS) == {"node0/gpu0"}
        assert oversubscribed_gpus(self.plan(10.1), PARTS) == frozenset()

    def test_a_partition_alone_never_takes_turns(self) -> None:
        assert oversubscribed_gpus(self.plan(1.0, ("node0/gpu0", "node0/gpu1")), PARTS) == frozenset()

    def test_a_lower_clock_makes_it_worse(self) -> None:
        plan = self.plan(11.0)
        slow = replace(plan, gpus=tuple(replace(gpu, initial_clock_mhz=945) for gpu in plan.gpus))
        assert (oversubscribed_gpus(plan, PARTS), oversubscribed_gpus(slow, PARTS)) == (
            frozenset(),
            {"node0/gpu0"},
        )

    def test_engines_do_not_count(self) -> None:
        plan = self.plan(9.9)
        models = (replace(plan.models[0], kind=ModelKind.GENERATIVE), plan.models[1])
        assert oversubscribed_gpus(replace(plan, models=models), PARTS) == frozenset()

    def test_instances_hold_the_resource_of_their_own_gpu(self, tmp_path: Path) -> None:
        file = spec(tmp_path, ROWS, ROWS | {"name": "more"}, LLM)
        places = {"rows": [(0,), (1,)], "more": [(1,)], "llm_engine": [(1,)]}
        plan, files = replicated_files(file, places)
        assert not any(
            group.HasField("rate_limiter") for c in configs(files).values() for group in c.instance_group
        )
        tight = tuple(
            replace(model, slo_ms=model.isolated_latency_ms * 1.5)
            if model.kind is ModelKind.SINGLE_PASS
            else model
            for model in plan.models
        )
        _, files = replicated_files(
            file, places, models=with_replicas(replace(plan, models=tight), places).models
        )
        held = {
            name: [
                [(r.name, r.count, getattr(r, "global")) for r in group.rate_limiter.resources]
                for group in c.instance_group
            ]
            for name, c in configs(files).items()
        }
        assert held["rows"] == [[], [("gpu1", 1, True)]]
        assert held["more"] == [[("gpu1", 1, True)]]
        assert held["llm_engine"] == held["llm_length_predictor"] == [[]]


class TestAnyPlan:
    @pytest.fixture(scope="class")
    @staticmethod
    def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[SpecFile, Plan]]:
        made = {}
        for target, world in (("embedded", {}), ("ngc", NGC)):
            file = spec(
                tmp_path_factory.mktemp(target),
                ROWS | {"partitions": 2, "batching": {"max_batch_size": 4}},
                ROWS | {"name": "plain"},
                VLLM,
                **world,
            )
            made[target] = (file, plan_spec(file).plan)
        return made

    @given(data=st.data())
    @settings(deadline=None, max_examples=40)
    def test_the_rules_that_keep_triton_from_stalling(
        self, worlds: dict[str, tuple[SpecFile, Plan]], data: st.DataObject
    ) -> None:
        from muplan.repository.artefacts import artefacts

        file, base = worlds[data.draw(st.sampled_from(sorted(worlds)))]
        gpu = st.sampled_from([(0,), (1,)])
        replicas = {
            name: data.draw(st.lists(gpu, min_size=1, max_size=6))
            for name in ("rows_stage0", "rows_stage1", "plain", "llm_engine")
        }
        if data.draw(st.booleans()):
            replicas["llm_engine"] = [(0, 1)]
        slo_ms = data.draw(st.floats(0.01, 100))
        plan = with_replicas(base, replicas)
        plan = replace(plan, models=tuple(replace(model, slo_ms=slo_ms) for model in plan.models))
        made = configs(artefacts(plan, staged_models(file), file))
        for name, config in made.items():
            instances = sum(group.count * max(1, len(group.gpus)) for group in config.instance_group)
            batching = config.dynamic_batching
            policies = (
                batching.priority_levels,
                batching.HasField("default_queue_policy"),
                len(batching.priority_queue_policy),
            )
            assert instances >= 4 or not any(policies), "Triton loses wake-ups there"
            if name.startswith("llm"):
                assert not any(group.HasField("rate_limiter") for group in config.instance_group)
            if name not in replicas:
                continue
            planned = [list(group) for group in replicas[name]]
            pinned = [list(group.gpus) for group in config.instance_group]
            if name == "llm_engine" and len(planned[0]) > 1:
                assert pinned == [[]]
                assert config.instance_group[0].kind == KINDS.KIND_MODEL
            else:
                assert pinned == planned
                assert {group.kind for group in config.instance_group} == {KINDS.KIND_GPU}
            assert parameters(config)["gpu"] == ";".join(
                ",".join(f"node0/gpu{n}" for n in g) for g in planned
            )


class TestCommand:
    def test_the_target_option_replaces_the_specs(self, tmp_path: Path) -> None:
        file = spec(tmp_path, ROWS, virtual=False)
        for target in ("ngc", "embedded"):
            out = tmp_path / target
            result = CliRunner().invoke(
                main, ["generate", str(file.path), "-o", str(out), "--target", target]
            )
            assert result.exit_code == 0, result.output
            assert read_plan(out).target == target
            names = {path.name for path in (out / REPOSITORY / "rows" / "1").iterdir()}
            assert names == ({"model.onnx"} if target == "ngc" else {"model.py", "partition.onnx"})

    def test_ngc_output_is_stable_and_names_no_place(self, tmp_path: Path) -> None:
        contents = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            _, files = replicated_files(spec(tmp_path / name, ROWS, VLLM, **NGC), {})
            write_directory(tmp_path / name / "out", files)
            written = sorted(path for path in (tmp_path / name / "out").rglob("*") if path.is_file())
            contents.append([path.read_bytes() for path in written])
        assert contents[0] == contents[1]
        assert not any(str(tmp_path).encode() in content for content in contents[0])
