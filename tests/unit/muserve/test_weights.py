"""Weightless graphs: what is stripped, how it is filled, and what a bad weights file says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from muserve.errors import InputError
from muserve.tensor_data import dense_bytes, is_beside
from muserve.weightless import hollow_weights, load_model, missing_weights, strip_weights
from muserve.weights import fill_weights, open_session, read_weights


def mlp(order: tuple[str, ...] = ("up", "up_bias", "down.transposed", "norm", "shift")) -> onnx.ModelProto:
    """A two-layer network whose initialisers are stored in the given order."""
    shapes = {
        "up": (64, 512),
        "up_bias": (512,),
        "down.transposed": (512, 64),
        "norm": (64,),
        "shift": (64,),
    }
    weights = [numpy_helper.from_array(np.ones(shapes[name], np.float32), name) for name in order]
    target = numpy_helper.from_array(np.array([-1, 64], np.int64), "target")
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"]),
        helper.make_node("Add", ["a", "up_bias"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "down.transposed"], ["d"]),
        helper.make_node("Reshape", ["d", "target"], ["e"]),
        helper.make_node("LayerNormalization", ["e", "norm", "shift"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 64])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 64])
    graph = helper.make_graph(nodes, "mlp", [x], [y], [*weights, target])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def names(model: onnx.ModelProto) -> set[str]:
    return {tensor.name for tensor in missing_weights(model)}


def test_only_big_floating_point_data_is_stripped() -> None:
    assert names(strip_weights(mlp(), 1024)) == {"up", "up_bias", "down.transposed"}
    assert names(strip_weights(mlp(), 0)) == {"up", "up_bias", "down.transposed", "norm", "shift"}
    assert strip_weights(mlp(), 1024).ByteSize() < 3000


def test_stripping_twice_changes_nothing_more() -> None:
    once = strip_weights(mlp(), 1024)
    assert strip_weights(once, 1024) == once


def test_data_depends_on_seed_and_name_alone() -> None:
    first = fill_weights(strip_weights(mlp(), 0), seed=3)
    shuffled = mlp(("shift", "norm", "down.transposed", "up_bias", "up"))
    second = fill_weights(strip_weights(shuffled, 0), seed=3)
    other_seed = fill_weights(strip_weights(mlp(), 0), seed=4)
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name])
    assert not np.array_equal(first["up"], other_seed["up"])
    assert not np.array_equal(first["up"].ravel(), first["down.transposed"].ravel())


def test_scale_follows_the_consumer() -> None:
    weights = fill_weights(strip_weights(mlp(), 0), seed=0)
    assert weights["up"].std() == pytest.approx(64**-0.5, rel=0.05)
    assert weights["down.transposed"].std() == pytest.approx(512**-0.5, rel=0.05)
    assert weights["up_bias"].std() == pytest.approx(0.02, rel=0.2)
    assert (weights["norm"] == 1).all()
    assert (weights["shift"] == 0).all()
    assert all(values.dtype == np.float32 for values in weights.values())


def test_fan_in_is_seen_through_transpositions() -> None:
    """Gemm with transB and MatMul after a Transpose read (out, in): the fan-in is the last axis."""
    wide = np.ones((16, 1024), np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "gemm"], ["a"], transB=1),
        helper.make_node("Transpose", ["linear"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 1024])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 16])
    initialisers = [numpy_helper.from_array(wide, "gemm"), numpy_helper.from_array(wide, "linear")]
    model = helper.make_model(helper.make_graph(nodes, "turned", [x], [y], initialisers))
    for values in fill_weights(strip_weights(model, 0), seed=0).values():
        assert values.std() == pytest.approx(1024**-0.5, rel=0.05)


def test_a_session_computes_with_the_given_arrays_and_lets_them_go() -> None:
    model = strip_weights(mlp(), 0)
    weights = fill_weights(model, seed=1)
    x = np.random.default_rng(0).standard_normal((3, 64), np.float32)
    hidden = np.maximum(x @ weights["up"] + weights["up_bias"], 0) @ weights["down.transposed"]
    centred = hidden - hidden.mean(axis=1, keepdims=True)
    expected = centred / np.sqrt(hidden.var(axis=1, keepdims=True) + 1e-5)
    session = open_session(model, weights, threads=1)
    for values in weights.values():
        values.fill(np.nan)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, atol=1e-4)


def test_a_session_without_an_array_names_the_initialiser() -> None:
    model = strip_weights(mlp(), 0)
    weights = fill_weights(model, seed=1)
    del weights["up_bias"]
    with pytest.raises(InputError, match="up_bias"):
        open_session(model, weights, threads=1)


def test_a_session_on_cuda_needs_an_onnx_runtime_with_cuda() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    model = strip_weights(mlp(), 0)

    with pytest.raises(InputError, match=r"CUDA device 1 is asked for.*onnxruntime-gpu"):
        open_session(model, fill_weights(model, 0), threads=1, cuda_device=1)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_weights_come_back_from_a_file(tmp_path: Path, suffix: str) -> None:
    model = strip_weights(mlp(), 0)
    expected = fill_weights(model, seed=5)
    stored = {
        **expected,
        "down": np.ascontiguousarray(expected["down.transposed"].T),
        "unrelated": np.ones(1),
    }
    del stored["down.transposed"]
    file = save(tmp_path / f"weights{suffix}", stored)
    loaded = read_weights(model, file)
    assert loaded.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(loaded[name], values)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_bad_weights_file_is_one_clear_sentence(tmp_path: Path, suffix: str) -> None:
    model = strip_weights(mlp(), 0)
    good = fill_weights(model, seed=5)
    file = tmp_path / f"weights{suffix}"
    with pytest.raises(InputError, match="no such weights file"):
        read_weights(model, file)
    file.write_bytes(b"not weights at all")
    with pytest.raises(InputError, match=f"not a valid {suffix} weights file"):
        read_weights(model, file)
    save(file, {name: values for name, values in good.items() if name != "norm"})
    with pytest.raises(InputError, match="tensor norm is missing"):
        read_weights(model, file)
    save(file, {**good, "up_bias": np.zeros(7, np.float32)})
    with pytest.raises(InputError, match=r"tensor up_bias: expected shape \(512,\), got \(7,\)"):
        read_weights(model, file)


def test_an_unknown_weights_format_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(b"x")
    with pytest.raises(InputError, match=r"expected a \.safetensors or \.npz weights file"):
        read_weights(strip_weights(mlp(), 0), file)


def moved_out(model: onnx.ModelProto, file: Path, locations: dict[str, str]) -> None:
    """Write ``model`` with the data of some initialisers in files beside it."""
    external = onnx.ModelProto()
    external.CopyFrom(model)
    for tensor in external.graph.initializer:
        if tensor.name in locations:
            (file.parent / locations[tensor.name]).write_bytes(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=locations[tensor.name])
    file.write_bytes(external.SerializeToString())


def test_data_beside_the_graph_is_used_where_it_lies(tmp_path: Path) -> None:
    """Two files, a small constant among them, and weightless tensors that stay so."""
    model = strip_weights(mlp(), 100_000)  # only the two matrices are stripped
    assert names(model) == {"up", "down.transposed"}
    moved_out(model, tmp_path / "model.onnx", {"up_bias": "bias.bin", "target": "target.bin"})
    loaded = load_model(tmp_path / "model.onnx")
    tensors = {tensor.name: tensor for tensor in loaded.graph.initializer}
    assert names(loaded) == names(model)
    assert is_beside(tensors["up_bias"])
    assert not tensors["up_bias"].raw_data
    assert list(numpy_helper.to_array(tensors["target"])) == [-1, 64]
    weights, x = fill_weights(model, seed=1), np.ones((3, 64), np.float32)
    expected, got = (open_session(m, weights, threads=1).run(None, {"x": x})[0] for m in (model, loaded))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"location": "gone.bin"}, "initialiser up_bias: expected its data in gone.bin: No such file"),
        ({"location": "short.bin"}, "expected 2048 bytes of data in short.bin, got 7"),
        ({"location": "bias.bin", "offset": "8"}, "expected 2048 bytes of data in bias.bin, got 2040"),
        ({"location": "bias.bin", "offset": "-8"}, "expected 2048 bytes"),
        ({"location": "bias.bin", "length": "4"}, "expected 2048 bytes of data in bias.bin, got 4"),
        ({"location": "bias.bin", "offset": "many"}, "expected its data in bias.bin: invalid literal"),
        ({"location": "../bias.bin"}, "expected its data in a file beside the graph, got '../bias.bin'"),
        ({"location": "/etc/passwd"}, "expected its data in a file beside the graph, got '/etc/passwd'"),
        ({"location": "muserve-weightless:much"}, "expected muserve-weightless:MEAN:DEVIATION"),
        ({"offset": "0", "basepath": "/etc"}, "expected its data in a file beside the graph, got ''"),
    ],
)
def test_data_that_is_not_there_is_named(tmp_path: Path, entries: dict[str, str], complaint: str) -> None:
    moved_out(mlp(), tmp_path / "model.onnx", {"up_bias": "bias.bin"})
    (tmp_path / "short.bin").write_bytes(bytes(7))
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    (tensor,) = (t for t in model.graph.initializer if t.external_data)
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"model\.onnx: initialiser up_bias: ") as caught:
        load_model(tmp_path / "model.onnx")
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("onnx_dtype", "size_bytes"),
    [
        (onnx.TensorProto.FLOAT, 60),
        (onnx.TensorProto.BFLOAT16, 30),
        (onnx.TensorProto.DOUBLE, 120),
        (onnx.TensorProto.INT4, 8),
        (onnx.TensorProto.UINT2, 4),
        (onnx.TensorProto.BOOL, 15),
    ],
)
def test_narrow_elements_are_packed(onnx_dtype: int, size_bytes: int) -> None:
    assert dense_bytes(onnx_dtype, (3, 5)) == size_bytes


def save(file: Path, arrays: dict[str, np.ndarray]) -> Path:  # type: ignore[type-arg]
    if file.suffix == ".npz":
        np.savez(file, **arrays)
    else:
        from safetensors.numpy import save_file

        save_file(arrays, file)
    return file


def mixture_of_experts() -> onnx.ModelProto:
    names = {"net.block.experts.*.up.weight.transposed": (3, 2, 4), "net.block.norm.weight": (4,)}
    tensors = [numpy_helper.from_array(np.zeros(dims, np.float32), name) for name, dims in names.items()]
    nodes = [helper.make_node("Identity", [name], [f"y{i}"]) for i, name in enumerate(names)]
    graph = helper.make_graph(nodes, "experts", [], [], tensors)
    return hollow_weights(helper.make_model(graph), frozenset(names))


@pytest.mark.parametrize("root", ["net.", "", "other."])
def test_a_directory_of_checkpoint_shards_fills_a_graph(root: str, tmp_path: Path) -> None:
    """Experts are stacked and turned; the network's own name may be left out, put in front or different."""
    safetensors = pytest.importorskip("safetensors.numpy")
    experts = {f"{root}block.experts.{i}.up.weight": np.full((4, 2), i, np.float16) for i in range(3)}
    safetensors.save_file(experts, tmp_path / "model-00001-of-00002.safetensors")
    scale = {
        f"{root}block.norm.weight": np.arange(4, dtype=np.float32),
        "head.weight": np.zeros(4, np.float32),
    }
    safetensors.save_file(scale, tmp_path / "model-00002-of-00002.safetensors")
    weights = read_weights(mixture_of_experts(), tmp_path)
    stacked = weights["net.block.experts.*.up.weight.transposed"]
    assert (stacked.dtype, stacked.shape) == (np.float32, (3, 2, 4))
    assert [float(matrix.mean()) for matrix in stacked] == [0, 1, 2]
    np.testing.assert_array_equal(weights["net.block.norm.weight"], np.arange(4))
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match=r"tensor net\.block\.experts\.0\.up\.weight is missing"):
        read_weights(mixture_of_experts(), tmp_path)
