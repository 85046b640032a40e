"""``muplan generate`` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from muplan.cli import main
from muserve.plan import read_plan

QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart.yaml"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["generate", *arguments])


def test_summary_names_models_gpus_clocks_and_power(tmp_path: Path) -> None:
    result = run(str(QUICKSTART), "-o", str(tmp_path / "out"))
    assert result.exit_code == 0, result.stderr
    plan = read_plan(tmp_path / "out")
    for model in plan.models:
        assert model.name in result.stdout
    for gpu in plan.gpus:
        assert gpu.name in result.stdout
        assert f"{gpu.initial_clock_mhz} MHz" in result.stdout
    assert "(virtual)" in result.stdout
    assert "modelled" in result.stdout
    assert f"Predicted power {plan.predicted_power_w:.0f} W" in result.stdout
    assert "profiling and cutting bert-base" in result.stderr


def test_json_is_all_of_stdout(tmp_path: Path) -> None:
    result = run(str(QUICKSTART), "-o", str(tmp_path / "out"), "--json", "--seed", "7")
    summary = json.loads(result.stdout)
    plan = read_plan(tmp_path / "out")
    assert plan.seed == 7
    assert summary["predicted_power_w"] == plan.predicted_power_w
    assert [model["name"] for model in summary["models"]] == [model.name for model in plan.models]
    assert {gpu["initial_clock_mhz"] for gpu in summary["gpus"]} == {
        gpu.initial_clock_mhz for gpu in plan.gpus
    }


def test_a_part_without_a_published_sweep_is_named_as_modelled(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    model = "{name: bert, source: catalog:bert-base, kind: single-pass, slo_ms: 500, load: {rate_rps: 1}}"
    gpus = "[{part: H100, virtual: true}, {part: L20, virtual: true}]"
    spec.write_text(f"cluster: {{nodes: [{{name: n, gpus: {gpus}}}]}}\nmodels: [{model}]\n")
    shown = run(str(spec), "-o", str(tmp_path / "out"))
    assert "is modelled for H100, not measured" in " ".join(shown.stdout.split())
    summary = json.loads(run(str(spec), "-o", str(tmp_path / "out"), "--json").stdout)
    assert [gpu["response_basis"] for gpu in summary["gpus"]] == ["modelled", "measured"]


@pytest.mark.parametrize(
    ("old", "new", "code", "expected"),
    [
        ("seed: 0\n", "sed: 0\n", 2, "sed: unknown key"),
        ("catalog:resnet-50", "catalog:resnet-51", 2, "unknown catalogue model 'resnet-51'"),
        ("name: resnet-50", "name: bert-base", 2, "expected distinct model names, got bert-base 2 times"),
        ("slo_ms: 615", "slo_ms: 1", 2, "expected more than the isolated latency"),
        ("slots: 8", "slots: 800", 2, "on one GPU and the largest here"),
        ("rate_rps: 1}", "rate_rps: 1", 2, "not valid YAML"),
        ("rate_rps: 1}", "rate_rps: 20000}", 3, "no feasible plan: model resnet-50"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, old: str, new: str, code: int, expected: str) -> None:
    text = QUICKSTART.read_text()
    assert old in text
    spec = tmp_path / "bad.yaml"
    spec.write_text(text.replace(old, new))
    result = run(str(spec), "-o", str(tmp_path / "out"))
    assert result.exit_code == code
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("muplan: ")]
    assert line.startswith("Error: ")
    assert expected in line
    assert not (tmp_path / "out").exists()


def test_missing_spec(tmp_path: Path) -> None:
    result = run(str(tmp_path / "none.yaml"), "-o", str(tmp_path / "out"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "expected a readable spec" in result.stderr


def test_unwritable_directory() -> None:
    result = run(str(QUICKSTART), "-o", "/proc/muserve/out")
    assert result.exit_code == 2
    assert "Error: /proc/muserve/out: expected a writable directory" in result.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from muplan.cli import main\n"
        "try: main(['generate', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'onnx', 'onnxruntime', 'torch', 'matplotlib', 'grpc'} & set(sys.modules)\n"
        "sys.exit(f'imported {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "SPEC" in done.stdout


def test_the_summary_names_every_gpu_of_a_tensor_parallel_engine(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "cluster: {nodes: [{name: n, gpus: [{part: A100-80GB, count: 2}]}]}\n"
        "models: [{name: chat, source: catalog:opt-1.3b, kind: generative, slo_ms: 60000, "
        "load: {rate_rps: 0.1}, engine: {model: facebook/opt-1.3b, tensor_parallel: 2}}]\n"
    )
    arguments = (str(spec), "-o", str(tmp_path / "out"), "--target", "ngc", "--no-report")
    assert "n/gpu0+n/gpu1" in run(*arguments).stdout
    summary = json.loads(run(*arguments, "--json").stdout)
    assert summary["models"][0]["partitions"][0]["gpus"] == ["n/gpu0+n/gpu1"]
