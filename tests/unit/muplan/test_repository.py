"""What lands on disk: the directory's all-or-nothing write, and configurations that parse back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto
from tritonclient.grpc import model_config_pb2

from muplan.profile.shapes import TensorSpec
from muplan.repository.directory import Artefact, read_manifest, write_directory
from muplan.repository.model_config import (
    Instance,
    Step,
    Tensor,
    backend_model,
    config_bytes,
    ensemble,
    on_cpu,
    parse_config,
    triton_tensors,
)
from muserve.errors import InputError

Files = dict[PurePosixPath, Artefact]

FILES: Files = {
    PurePosixPath("plan.json"): b"{}\n",
    PurePosixPath("node0/model_repository/a/config.pbtxt"): b"name: 'a'\n",
}


def snapshot(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


class TestDirectory:
    def test_manifest_lists_every_file_with_its_digest(self, tmp_path: Path) -> None:
        target = tmp_path / "deep" / "out"
        write_directory(target, FILES)
        written = snapshot(target)
        manifest = json.loads(written.pop("manifest.json"))
        assert manifest["files"] == {
            name: hashlib.sha256(content).hexdigest() for name, content in written.items()
        }
        assert set(written) == {str(name) for name in FILES}

    def test_files_directories_and_writers_are_artefacts(self, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "weights").write_bytes(b"w")
        target = tmp_path / "out"

        def write_m(path: Path) -> None:
            path.write_text("m")

        write_directory(
            target,
            {
                PurePosixPath("copy"): tmp_path / "model" / "weights",
                PurePosixPath("tree"): tmp_path / "model",
                PurePosixPath("made"): write_m,
            },
        )
        written = snapshot(target)
        assert {name: written[name] for name in ("copy", "tree/weights", "made")} == {
            "copy": b"w",
            "tree/weights": b"w",
            "made": b"m",
        }
        assert set(read_manifest(target) or {}) == {"copy", "tree/weights", "made"}

    def test_rewriting_gives_the_same_bytes(self, tmp_path: Path) -> None:
        target = tmp_path / "out"
        write_directory(target, FILES)
        before = snapshot(target)
        write_directory(target, FILES)
        assert snapshot(target) == before
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_old_files_go_and_a_users_own_stay(self, tmp_path: Path) -> None:
        target = tmp_path / "out"
        write_directory(target, FILES | {PurePosixPath("node0/model_repository/old/1/model.py"): b"x"})
        (target / "notes.txt").write_text("mine")
        (target / "vgpu").mkdir()
        (target / "vgpu" / "state").write_text("s")
        (target / "node0/model_repository/old/1/__pycache__").mkdir()
        (target / "node0/model_repository/old/1/__pycache__/model.pyc").write_text("c")
        write_directory(target, FILES)
        assert set(snapshot(target)) == {*map(str, FILES), "manifest.json", "notes.txt", "vgpu/state"}
        assert not (target / "node0/model_repository/old").exists(), "Triton would take it for a model"

    def test_a_foreign_directory_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(InputError, match=r"expected an empty directory .* holds thesis\.tex"):
            write_directory(tmp_path, FILES)
        (tmp_path / "manifest.json").write_text('{"format": "somebody else"}')
        with pytest.raises(InputError, match="expected an empty directory"):
            write_directory(tmp_path, FILES)
        assert set(snapshot(tmp_path)) == {"thesis.tex", "manifest.json"}

    def test_an_empty_directory_is_taken(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        write_directory(tmp_path / "out", FILES)
        assert (tmp_path / "out" / "plan.json").exists()

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("x")
        with pytest.raises(InputError, match="expected a directory, got a file"):
            write_directory(tmp_path / "out", FILES)
        with pytest.raises(InputError, match="expected a writable directory"):
            write_directory(tmp_path / "out" / "below", FILES)

    def test_a_failure_half_way_leaves_what_was_there(self, tmp_path: Path) -> None:
        target = tmp_path / "out"
        write_directory(target, FILES)
        before = snapshot(target)
        broken = {PurePosixPath("a"): b"new", PurePosixPath("z"): tmp_path / "missing"}
        with pytest.raises(InputError, match="expected a writable directory"):
            write_directory(target, broken)
        with pytest.raises(InputError):
            write_directory(tmp_path / "other", broken)
        assert snapshot(target) == before
        assert [path.name for path in tmp_path.iterdir()] == ["out"], "scratch is cleaned up"


text = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)


class TestConfig:
    @given(st.dictionaries(text, text, max_size=4), st.integers(0, 7) | st.none())
    def test_python_model_parses_back(self, parameters: dict[str, str], gpu: int | None) -> None:
        config = backend_model(
            "python",
            "m",
            inputs=(Tensor(name="x", dtype="INT64", dims=(-1, 3), optional=True),),
            outputs=(Tensor(name="y", dtype="FP32", dims=(1,)),),
            parameters=parameters,
            instances=(Instance(gpus=() if gpu is None else (gpu,)),),
            gpu_name="node0/gpu0",
        )
        parsed = parse_config(config_bytes(config))
        assert parsed == config
        assert b"max_batch_size: 0" in config_bytes(config)
        assert {key: value.string_value for key, value in parsed.parameters.items()} == parameters
        (group,) = parsed.instance_group
        assert list(group.gpus) == ([] if gpu is None else [gpu])

    def test_cpu_variant_differs_in_the_instances_only(self) -> None:
        config = self.engine()
        kinds = model_config_pb2.ModelInstanceGroup
        cpu = on_cpu(config)
        assert config.instance_group[0].kind == kinds.KIND_GPU
        assert (cpu.instance_group[0].kind, list(cpu.instance_group[0].gpus)) == (kinds.KIND_CPU, [])
        cpu.instance_group[0].CopyFrom(config.instance_group[0])
        assert cpu == config

    def test_no_queue_policy_on_one_instance(self) -> None:
        """Triton loses wake-ups of such models: every dispatch may take 500 ms."""
        assert not self.engine().HasField("dynamic_batching")

    def test_ensemble_maps_tensors(self) -> None:
        config = ensemble(
            "whole",
            inputs=(Tensor(name="x", dtype="FP32", dims=(-1,)),),
            outputs=(Tensor(name="y", dtype="FP32", dims=(-1,)),),
            steps=(
                Step(model="one", inputs={"x": "x"}, outputs={"h": "h"}),
                Step(model="two", inputs={"h": "h"}, outputs={"y": "y"}),
            ),
            parameters={},
            gpu_name="node0/gpu0,node0/gpu1",
        )
        parsed = parse_config(config_bytes(config))
        assert parsed.platform == "ensemble"
        assert [dict(step.output_map) for step in parsed.ensemble_scheduling.step] == [
            {"h": "h"},
            {"y": "y"},
        ]
        assert parsed.metric_tags["gpu"] == "node0/gpu0,node0/gpu1"

    def test_onnx_types_become_tritons(self) -> None:
        kinds = [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.BOOL]
        specs = [TensorSpec(name="t", onnx_dtype=kind, dims=(None, 4)) for kind in kinds]
        assert [t.dtype for t in triton_tensors(specs)] == ["FP32", "FP16", "BF16", "BOOL"]
        assert triton_tensors(specs)[0].dims == (-1, 4)

    @pytest.mark.parametrize(
        ("spec", "expected"),
        [
            (
                TensorSpec(name="s", onnx_dtype=TensorProto.FLOAT, dims=()),
                "tensor s: Triton cannot carry scalars",
            ),
            (
                TensorSpec(name="c", onnx_dtype=TensorProto.COMPLEX64, dims=(1,)),
                "tensor c: Triton has no element type COMPLEX64",
            ),
        ],
    )
    def test_what_triton_cannot_carry(self, spec: TensorSpec, expected: str) -> None:
        with pytest.raises(InputError, match=expected):
            triton_tensors([spec])

    def engine(self) -> Any:
        return backend_model(
            "python",
            "engine",
            inputs=(),
            outputs=(),
            parameters={},
            instances=(Instance(gpus=(1,)),),
            gpu_name="node0/gpu1",
            decoupled=True,
        )
