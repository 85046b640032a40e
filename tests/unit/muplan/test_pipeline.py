"""From spec to files: the quickstart as committed, determinism, and what stops a plan."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2

from muplan.cli import main
from muplan.pipeline import generate, plan_spec
from muplan.repository.directory import REPOSITORY_NAME, read_manifest
from muplan.repository.model_config import parse_config
from muplan.spec import SpecFile, parse_spec, read_spec
from mupower.fleet import open_fleet
from muserve.errors import InfeasiblePlanError, InputError
from muserve.gpu.parts import load_part, part_bytes
from muserve.gpu.virtual import VirtualGpu
from muserve.plan import PLAN_VERSION, ModelKind, Phase, read_plan
from muserve.weightless import hollow_weights, strip_weights

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "examples" / "quickstart.yaml"


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("generated") / "quickstart"
    generate(read_spec(QUICKSTART), directory)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def bert(**changes: Any) -> dict[str, Any]:
    model = {
        "name": "bert",
        "source": "catalog:bert-base",
        "kind": "single-pass",
        "slo_ms": 500,
        "dims": {"sequence": 64},
        "load": {"rate_rps": 1},
    }
    return {**model, **changes}


def llm(**changes: Any) -> dict[str, Any]:
    model = {
        "name": "llm",
        "source": "catalog:opt-1.3b",
        "kind": "generative",
        "slo_ms": 20_000,
        "attainment": 0.9,
        "load": {"rate_rps": 1},
    }
    return {**model, **changes}


def spec_file(directory: Path, *models: dict[str, Any], **changes: Any) -> SpecFile:
    gpus = changes.pop("gpus", [{"part": "V100-16GB", "count": 2, "virtual": True}])
    document = {"cluster": {"nodes": [{"name": "n", "gpus": gpus}]}, "models": list(models), **changes}
    path = directory / "spec.yaml"
    return SpecFile(path=path, spec=parse_spec(document, path), sha256="0" * 64)


def refused(file: SpecFile, directory: Path) -> str:
    with pytest.raises(InputError) as caught:
        generate(file, directory / "out")
    assert not (directory / "out").exists(), "nothing is written"
    assert "\n" not in str(caught.value)
    return str(caught.value)


def own_part(file: Path, **changes: Any) -> None:
    """A profile file, made from a part of the catalogue."""
    part = json.loads(part_bytes(load_part("V100-16GB")))
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(part | {"name": "my-v100", "idle_default_w": 50.0} | changes))


def tiny_onnx(file: Path, *, scalar: bool = False) -> None:
    """y = x @ w, with its weights inside."""
    shape: list[str | int] = [] if scalar else ["rows", 3]
    node = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0) if scalar else None
    graph = helper.make_graph(
        [node or helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [] if scalar else [numpy_helper.from_array(np.ones((2, 3), np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)


def half_and_half_onnx(file: Path, convolutions: int = 4, products: int = 4) -> None:
    """Convolutions, which compute, then products with one row, which read weights; all of about 0.4 ms."""
    channels, width = 256, 8192
    nodes, weights = [], []
    last = "x"
    for i in range(convolutions):
        weights.append(
            TensorProto(name=f"c{i}", dims=[channels, channels, 3, 3], data_type=TensorProto.FLOAT)
        )
        nodes.append(
            helper.make_node("Conv", [last, f"c{i}"], [f"conv{i}"], name=f"conv{i}", pads=[1, 1, 1, 1])
        )
        last = f"conv{i}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"))
    last = "flat"
    for i in range(products):
        rows = width if i else channels
        weights.append(TensorProto(name=f"m{i}", dims=[rows, width], data_type=TensorProto.FLOAT))
        nodes.append(helper.make_node("MatMul", [last, f"m{i}"], [f"product{i}"], name=f"product{i}"))
        last = f"product{i}"
    graph = helper.make_graph(
        nodes,
        "half_and_half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", channels, 56, 56])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["batch", width])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    hollow = hollow_weights(model, frozenset(weight.name for weight in weights))
    file.write_bytes(hollow.SerializeToString())


class TestQuickstart:
    def test_committed_repository_is_current(self, quickstart: Path) -> None:
        committed = contents(ROOT / REPOSITORY_NAME)
        generated = contents(quickstart / "node0" / REPOSITORY_NAME)
        assert committed.keys() == generated.keys(), "run tools/regenerate_model_repository.py"
        stale = [name for name in generated if generated[name] != committed[name]]
        assert stale == [], "run tools/regenerate_model_repository.py"
        assert sum(map(len, committed.values())) < 2_000_000

    def test_regenerating_gives_the_same_bytes(self, quickstart: Path, tmp_path: Path) -> None:
        generate(read_spec(QUICKSTART), tmp_path / "elsewhere")
        assert contents(tmp_path / "elsewhere") == contents(quickstart)

    def test_no_path_of_this_machine_is_written(self, quickstart: Path) -> None:
        for name, content in contents(quickstart).items():
            assert str(ROOT).encode() not in content, name
            assert str(quickstart).encode() not in content, name

    def test_plan_reads_back_and_is_complete(self, quickstart: Path) -> None:
        plan = read_plan(quickstart)
        assert [model.name for model in plan.models] == ["bert-base", "resnet-50", "opt-1.3b"]
        assert [len(model.partitions) for model in plan.models] == [2, 1, 1]
        assert plan.predicted_power_w < plan.default_clock_power_w
        assert plan.predicted_power_w == pytest.approx(
            sum(gpu.predicted_power_w for gpu in plan.gpus), abs=0.01
        )
        for model in plan.models:
            assert model.predicted_attainment >= model.attainment_target
            assert model.isolated_latency_ms < model.slo_ms
        for gpu in plan.gpus:
            assert gpu.uuid == f"VGPU-{gpu.node}-{gpu.index}"
            assert gpu.initial_clock_reason.endswith(".")

    def test_every_config_parses_and_every_model_runs_our_code(self, quickstart: Path) -> None:
        repository = quickstart / "node0" / REPOSITORY_NAME
        backends = ROOT / "python_backend" / "mubackend"
        shims = {path.read_bytes() for path in backends.glob("*/model.py")}
        plan = read_plan(quickstart)
        for directory in repository.iterdir():
            config = parse_config((directory / "config.pbtxt").read_bytes())
            assert config.name == directory.name
            assert config.parameters["muserve_model"].string_value in {m.name for m in plan.models}
            if config.platform == "ensemble":
                continue
            assert (directory / "1" / "model.py").read_bytes() in shims
            cpu = parse_config((directory / "configs" / "cpu.pbtxt").read_bytes())
            assert {group.kind for group in cpu.instance_group} == {
                model_config_pb2.ModelInstanceGroup.KIND_CPU
            }

    def test_instances_and_settings_follow_the_plan(self, quickstart: Path) -> None:
        plan = read_plan(quickstart)
        for model in plan.models:
            for partition in model.partitions:
                file = quickstart / "node0" / REPOSITORY_NAME / partition.name / "config.pbtxt"
                config = parse_config(file.read_bytes())
                gpu = plan.gpu(partition.replicas[0].gpu)
                assert list(config.instance_group[0].gpus) == [gpu.index]
                settings = {key: value.string_value for key, value in config.parameters.items()}
                assert (settings["gpu"], settings["gpu_uuid"]) == (gpu.name, gpu.uuid)
                phase = Phase.DECODE if model.kind is ModelKind.GENERATIVE else Phase.INFERENCE
                key = "decode" if model.kind is ModelKind.GENERATIVE else ""
                latency = settings["decode_ms" if key else "latency_ms"]
                assert float(latency) == partition.law(phase).latency_ms


class TestOtherSpecs:
    def test_onnx_file_with_its_own_weights(self, tmp_path: Path) -> None:
        tiny_onnx(tmp_path / "tiny.onnx")
        model = bert(name="tiny", source="onnx:tiny.onnx", dims={"rows": 4})
        planned = plan_spec(spec_file(tmp_path, model))
        config = planned.files[PurePosixPath("n/model_repository/tiny/config.pbtxt")]
        assert isinstance(config, bytes)
        parsed = parse_config(config)
        assert [list(tensor.dims) for tensor in (*parsed.input, *parsed.output)] == [[-1, 2], [-1, 3]]
        assert not {"weights_seed", "weights_file"} & set(parsed.parameters)
        plan = generate(spec_file(tmp_path, model), tmp_path / "out")
        written = onnx.load(tmp_path / "out/n/model_repository/tiny/1/partition.onnx")
        assert numpy_helper.to_array(written.graph.initializer[0]).sum() == 6
        assert plan.models[0].partitions[0].weight_bytes == 24

    def test_unlike_halves_are_parted_at_their_border(self, tmp_path: Path) -> None:
        half_and_half_onnx(tmp_path / "halves.onnx")
        model = bert(name="halves", source="onnx:halves.onnx", dims={}, weights={"seed": 0})
        (planned,) = plan_spec(spec_file(tmp_path, model)).plan.models
        computes, reads = (partition.laws[0].sensitivity.value for partition in planned.partitions)
        assert computes > 0.8
        assert reads < 0.2
        (cut,) = planned.cuts
        assert cut.after_operator in ("pool", "flatten")
        assert cut.unlikeness_removed > 0.1
        gain = cut.unlikeness_removed + cut.imbalance_removed - cut.transfer_cost - cut.cut_cost
        assert gain > 0
        dear = spec_file(tmp_path, model, partitioning={"cut": 1})
        assert [len(m.partitions) for m in plan_spec(dear).plan.models] == [1]

    def test_a_model_larger_than_a_gpu_is_cut_until_it_fits(self, tmp_path: Path) -> None:
        half_and_half_onnx(tmp_path / "large.onnx", convolutions=0, products=80)
        model = bert(name="large", source="onnx:large.onnx", dims={"batch": 1}, weights={"seed": 0})
        (planned,) = plan_spec(spec_file(tmp_path, model)).plan.models
        assert len(planned.partitions) == 2
        for partition in planned.partitions:
            assert partition.memory_bytes <= load_part("V100-16GB").memory_bytes
        sentence = refused(spec_file(tmp_path, {**model, "partitions": 1}), tmp_path)
        assert "partitions: expected auto or at least 2, for V100-16GB has 16.9 GB, got 1" in sentence

    def test_files_of_the_spec_travel_with_the_node(self, tmp_path: Path) -> None:
        tiny_onnx(tmp_path / "tiny.onnx")
        hollow = strip_weights(onnx.load(tmp_path / "tiny.onnx"), largest_inline_bytes=0)
        (tmp_path / "hollow.onnx").write_bytes(hollow.SerializeToString())
        np.savez(tmp_path / "w.npz", w=np.ones((2, 3), np.float32))
        (tmp_path / "a.jsonl").write_bytes(b"{}\n")
        (tmp_path / "t.json").write_text('{"model": {}}')
        generate(
            spec_file(
                tmp_path,
                bert(source="onnx:hollow.onnx", dims={"rows": 4}, weights={"file": "w.npz"}),
                llm(engine={"answers": "a.jsonl"}, tokenizer="t.json"),
            ),
            tmp_path / "out",
        )
        assert (tmp_path / "out/n/weights/bert.npz").read_bytes() == (tmp_path / "w.npz").read_bytes()
        assert (tmp_path / "out/n/answers/llm.jsonl").read_bytes() == b"{}\n"
        repository = tmp_path / "out/n/model_repository"
        stage = parse_config((repository / "bert/config.pbtxt").read_bytes())
        assert stage.parameters["weights_file"].string_value == "weights/bert.npz"
        engine = parse_config((repository / "llm_engine/config.pbtxt").read_bytes())
        assert engine.parameters["answers_file"].string_value == "answers/llm.jsonl"
        assert (tmp_path / "out/n" / engine.parameters["tokenizer_file"].string_value).exists()

    def test_slo_scale_is_of_the_isolated_latency(self, tmp_path: Path) -> None:
        model = {key: value for key, value in bert().items() if key != "slo_ms"}
        planned = plan_spec(spec_file(tmp_path, model | {"slo_scale": 5}))
        (bert_plan,) = planned.plan.models
        assert bert_plan.slo_ms == pytest.approx(5 * bert_plan.isolated_latency_ms, abs=0.001)

    def test_key_value_cache_is_kept_for_the_longest_request_of_each_slot(self, tmp_path: Path) -> None:
        def memory_bytes(**engine: int) -> int:
            plan = plan_spec(spec_file(tmp_path, llm(engine=engine))).plan
            return plan.models[0].partitions[0].memory_bytes

        cache_bytes = memory_bytes(slots=8) - memory_bytes(slots=8, max_model_len=1024)
        assert cache_bytes == 8 * 1024 * 2 * 24 * 2048 * 2  # keys and values, 24 layers of width 2048, fp16

    def test_order_and_aging_reach_the_models(self, tmp_path: Path) -> None:
        file = spec_file(tmp_path, llm(), serving={"order": "fcfs"}, predictor={"alpha": math.inf})
        files = plan_spec(file).files
        repository = PurePosixPath("n", REPOSITORY_NAME)
        settings = {
            name: parse_config(data).parameters
            for name in ("llm_engine", "llm_length_predictor")
            if isinstance(data := files[repository / name / "config.pbtxt"], bytes)
        }
        assert settings["llm_engine"]["queue_order"].string_value == "fcfs"
        assert settings["llm_engine"]["alpha"].string_value == "inf"
        assert settings["llm_length_predictor"]["alpha"].string_value == "inf"

    def test_a_part_of_a_profile_file_travels_with_the_plan(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own_part(tmp_path / "profiles" / "mine.json")
        gpus = [{"part": "profiles/mine.json", "virtual": True}, {"part": "T4", "virtual": True}]
        batched = bert(partitions=2, batching={"max_batch_size": 4}, replicas=1)
        generate(spec_file(tmp_path, batched, llm(), gpus=gpus), tmp_path / "out", report=True)
        (tmp_path / "profiles" / "mine.json").unlink()
        assert "my-v100" in (tmp_path / "out" / "report.html").read_text()
        explained = CliRunner().invoke(main, ["explain", str(tmp_path / "out" / "plan.json")])
        assert "my-v100" in explained.stdout
        simulated = CliRunner().invoke(main, ["simulate", str(tmp_path / "out"), "--seconds", "60", "--json"])
        assert simulated.exit_code == 0, simulated.stderr
        monkeypatch.setenv("MUSERVE_VGPU_DIR", str(tmp_path / "elsewhere"))
        fleet = open_fleet(tmp_path / "out", "n")
        assert [part.name for part in fleet.parts.values()] == ["my-v100", "T4"]
        assert fleet.parts["n/gpu0"].idle_default_w == 50
        assert VirtualGpu(tmp_path / "elsewhere" / "VGPU-n-0.vgpu").power_w() == 50
        assert [p.name for p in (tmp_path / "out" / "parts").iterdir()] == ["my-v100.json"]

    def test_a_graph_too_large_for_one_gpu_is_cut_to_fit(self, tmp_path: Path) -> None:
        own_part(tmp_path / "small.json", memory_bytes=900_000_000)
        gpus = [{"part": "small.json", "count": 5, "virtual": True}]
        plan = plan_spec(spec_file(tmp_path, bert(source="catalog:bert-large"), gpus=gpus)).plan
        assert len(plan.models[0].partitions) >= 3
        assert all(gpu.memory_used_bytes <= 900_000_000 for gpu in plan.gpus)

    def test_real_gpus_have_no_uuid(self, tmp_path: Path) -> None:
        planned = plan_spec(spec_file(tmp_path, bert(), gpus=[{"part": "V100-16GB"}]))
        (gpu,) = planned.plan.gpus
        assert (gpu.virtual, gpu.uuid) == (False, None)

    def test_a_second_run_replaces_models_that_are_gone(self, tmp_path: Path) -> None:
        generate(spec_file(tmp_path, bert(), llm()), tmp_path / "out")
        generate(spec_file(tmp_path, bert()), tmp_path / "out")
        names = {path.name for path in (tmp_path / "out/n/model_repository").iterdir()}
        assert names == {"bert"}
        assert set(read_manifest(tmp_path / "out") or {}) | {"manifest.json"} == set(
            contents(tmp_path / "out")
        )


class TestRefused:
    @pytest.mark.parametrize(
        ("model", "expected"),
        [
            (bert(source="catalog:gpt-5"), "models[0] (bert): unknown catalogue model 'gpt-5'"),
            (bert(source="onnx:none.onnx"), "none.onnx: expected a readable ONNX file"),
            (bert(source="onnx:broken.onnx"), "broken.onnx: not a"),
            (bert(source="catalog:opt-1.3b", dims={}), "kind: catalog:opt-1.3b is generative"),
            (bert(dims={"width": 3}), "dims.width: no such free dimension, expected one of: "),
            (bert(slo_ms=0.5), "slo_ms: expected more than the isolated latency of"),
            (bert(partitions=4000), "partitions: expected auto or 1 to"),
            (bert(weights={"file": "none.npz"}), "none.npz: expected a readable file"),
            (bert(weights={"file": "broken.onnx"}), "weights.file: "),
            (llm(tokenizer="none.json"), "none.json: expected a readable file"),
            (llm(tokenizer="broken.onnx"), "tokenizer: expected a tokenizer.json"),
            (llm(engine={"answers": "none.jsonl"}), "none.jsonl: expected a readable file"),
            (llm(engine={"slots": 200}), "llm_engine needs 83.6 GB on one GPU and the largest here"),
            (
                llm(engine={"slots": 200}),
                "expected engine.slots up to 34 or a larger GPU such as H100 or target ngc, whose vllm works "
                "tensor parallel on 8 of them",
            ),
            (
                llm(source="catalog:llama-2-70b", slo_ms=90_000),
                "llm_engine needs 149.1 GB on one GPU and the largest here, V100-16GB, has 16.9 GB: expected "
                "a larger GPU such as H200",
            ),
            (
                llm(engine={"tensor_parallel": 2}),
                "engine.tensor_parallel: engines of target embedded work on one GPU: expected 1 or target "
                "ngc, got 2",
            ),
            (llm(tokens={"prompt": 2000, "output": 2000}), "tokens: expected prompt and output of at most"),
            (llm(engine={"max_model_len": 4000}), "engine.max_model_len: expected at most the model's 2048"),
            (llm(engine={"max_model_len": 400}), "tokens: expected prompt and output of at most 400 tokens"),
            (llm(slo_ms=1000), "slo_ms: expected more than the isolated latency of"),
        ],
    )
    def test_one_sentence_and_nothing_written(
        self, tmp_path: Path, model: dict[str, Any], expected: str
    ) -> None:
        (tmp_path / "broken.onnx").write_bytes(b"not onnx")
        sentence = refused(spec_file(tmp_path, model), tmp_path)
        assert sentence.startswith(f"{tmp_path / 'spec.yaml'}: models[0] ({model['name']}): ")
        assert expected in sentence

    @pytest.mark.parametrize(
        ("engine", "expected"),
        [
            ({}, "needs 19.0 GB on each of its 8 GPUs and the largest here"),
            ({"tensor_parallel": 4}, "needs 37.6 GB on each of its 4 GPUs and the largest here"),
        ],
    )
    def test_a_model_too_large_for_tensor_parallel_engines(
        self, engine: dict[str, Any], expected: str, tmp_path: Path
    ) -> None:
        model = llm(source="catalog:llama-2-70b", slo_ms=90_000, engine={"model": "m", **engine})
        file = spec_file(tmp_path, model, gpus=[{"part": "V100-16GB"}], serving={"target": "ngc"})
        assert expected in refused(file, tmp_path)

    @pytest.mark.parametrize(
        ("replicas", "gpus", "expected"),
        [
            (
                3,
                2,
                "it needs 3 GPUs of one part on one node, and no node has as many; it would fit with 1 more "
                "V100-16GB or replicas: 2",
            ),
            (9, 1, "it would fit with 8 more V100-16GB or replicas: 1"),
            (10, 1, "no node has as many; it would fit with replicas: 1"),
        ],
    )
    def test_replicas_without_gpus(self, replicas: int, gpus: int, expected: str, tmp_path: Path) -> None:
        cluster = [{"part": "V100-16GB", "count": gpus, "virtual": True}]
        with pytest.raises(InfeasiblePlanError, match="no feasible plan: model bert: ") as caught:
            plan_spec(spec_file(tmp_path, bert(replicas=replicas), gpus=cluster))
        assert str(caught.value).endswith(expected)

    def test_a_graph_larger_than_the_cluster(self, tmp_path: Path) -> None:
        own_part(tmp_path / "small.json", memory_bytes=900_000_000)
        gpus = [{"part": "small.json", "virtual": True}]
        with pytest.raises(InfeasiblePlanError) as caught:
            plan_spec(spec_file(tmp_path, bert(source="catalog:bert-large"), gpus=gpus))
        assert "does not pack; it would fit with" in str(caught.value)

    def test_names_that_collide_once_the_number_of_partitions_is_known(self, tmp_path: Path) -> None:
        file = spec_file(
            tmp_path,
            bert(slo_ms=5000),
            bert(name="bert_stage1", slo_ms=5000),
            partitioning={"cut": 0, "transfer": 0, "imbalance": 0},
        )
        sentence = refused(file, tmp_path)
        assert "spec.yaml: models: expected distinct Triton model names, got bert_stage1 2 times" in sentence

    def test_weights_for_a_source_that_has_its_own(self, tmp_path: Path) -> None:
        tiny_onnx(tmp_path / "tiny.onnx")
        model = bert(source="onnx:tiny.onnx", dims={"rows": 4}, weights={"seed": 1})
        assert "weights: onnx:tiny.onnx brings its own" in refused(spec_file(tmp_path, model), tmp_path)

    def test_unknown_part(self, tmp_path: Path) -> None:
        sentence = refused(spec_file(tmp_path, bert(), gpus=[{"part": "V900"}]), tmp_path)
        assert "cluster: unknown GPU part 'V900': expected one of" in sentence

    @pytest.mark.parametrize(
        ("files", "expected"),
        [
            (["none.json"], "none.json: expected a readable part: No such file or directory"),
            (["spec.json"], "spec.json: not valid JSON"),
            (["mine.json", "taken.json"], "name: expected a name that the catalogue does not have, got 'T4'"),
            (
                ["mine.json", "other.json"],
                "other.json: name: expected another name than the different part of",
            ),
            (["escape.json"], "name: expected up to 64 letters, digits, '_', '.' or '-', got '../../mine'"),
        ],
    )
    def test_bad_profile_files(self, tmp_path: Path, files: list[str], expected: str) -> None:
        own_part(tmp_path / "mine.json")
        own_part(tmp_path / "other.json", idle_default_w=60.0)
        own_part(tmp_path / "taken.json", name="T4")
        own_part(tmp_path / "escape.json", name="../../mine")
        (tmp_path / "spec.json").write_text("not a part")
        gpus = [{"part": file, "virtual": True} for file in files]
        sentence = refused(spec_file(tmp_path, bert(), gpus=gpus), tmp_path)
        assert sentence.startswith(f"{tmp_path / 'spec.yaml'}: cluster: ")
        assert expected in sentence

    def test_replay_on_real_gpus(self, tmp_path: Path) -> None:
        sentence = refused(spec_file(tmp_path, llm(), gpus=[{"part": "V100-16GB"}]), tmp_path)
        assert "engine.name: replay runs on virtual GPUs only" in sentence

    def test_missing_predictor(self, tmp_path: Path) -> None:
        sentence = refused(spec_file(tmp_path, llm(), predictor={"file": "none"}), tmp_path)
        assert "spec.yaml: predictor.file: " in sentence

    def test_scalar_output(self, tmp_path: Path) -> None:
        tiny_onnx(tmp_path / "scalar.onnx", scalar=True)
        model = bert(name="s", source="onnx:scalar.onnx", dims={"rows": 4})
        assert "Triton cannot carry scalars" in refused(spec_file(tmp_path, model), tmp_path)

    def test_overload_is_infeasible_and_writes_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(InfeasiblePlanError, match="no feasible plan: model llm: ") as caught:
            generate(spec_file(tmp_path, llm(load={"rate_rps": 40})), tmp_path / "out")
        assert caught.value.exit_code == 3
        assert not (tmp_path / "out").exists()

    def test_foreign_directory_is_refused_before_any_work(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.tex").write_text("years of work")
        file = spec_file(tmp_path, bert())
        missing = replace(file, path=tmp_path / "gone" / "spec.yaml")
        with pytest.raises(InputError, match="expected an empty directory"):
            generate(missing, tmp_path / "out")


@pytest.mark.parametrize("example", sorted(QUICKSTART.parent.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_has_a_plan_that_saves_power(example: Path) -> None:
    plan = plan_spec(read_spec(example)).plan
    assert all(model.predicted_attainment >= model.attainment_target for model in plan.models)
    assert plan.predicted_power_w < plan.default_clock_power_w


def test_progress_tells_each_step(tmp_path: Path) -> None:
    steps: list[str] = []
    generate(spec_file(tmp_path, bert()), tmp_path / "out", steps.append)
    assert [step.split()[0] for step in steps] == ["profiling", "placing", "writing"]
    assert json.loads((tmp_path / "out" / "plan.json").read_bytes())["version"] == PLAN_VERSION
