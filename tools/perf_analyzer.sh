#!/usr/bin/env bash
# NVIDIA's perf_analyzer on this machine: fetched once into build/perf_analyzer, then run with the given arguments.
#
#   tools/perf_analyzer.sh -m bert-base -i grpc -u 127.0.0.1:8001 --concurrency-range 1 --input-data FILE
#
# The program comes from the last tritonclient wheel that has one. The two libraries it needs beyond the
# system's (libb64, libcudart) come from the nvidia-pytriton wheel, which must be installed.
# PYTHON names the interpreter to ask; default: .venv/bin/python, else python3.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
home=$root/build/perf_analyzer
wheel_version=2.45.0
python=${PYTHON:-$root/.venv/bin/python}
[[ -x $(command -v "$python") ]] || python=python3

fail() {
    echo "perf_analyzer.sh: $*" >&2
    exit 2
}

fetch() {
    local fresh=$home.new
    rm -rf "$fresh"
    mkdir -p "$fresh/lib"
    echo "perf_analyzer.sh: fetching perf_analyzer $wheel_version into ${home#"$root"/}" >&2
    "$python" -m pip download --quiet --no-deps --only-binary :all: --dest "$fresh" \
        "tritonclient==$wheel_version" >&2 || fail "pip could not download tritonclient $wheel_version"
    "$python" -m zipfile -e "$fresh"/tritonclient-*.whl "$fresh/wheel"
    install -m 755 "$fresh"/wheel/*.data/data/bin/perf_analyzer "$fresh/perf_analyzer"
    rm -rf "$fresh/wheel" "$fresh"/*.whl
    rm -rf "$home"
    mv "$fresh" "$home"
}

link_libraries() {
    local libraries
    libraries=$("$python" -c 'import importlib.util as u, pathlib as p
spec = u.find_spec("pytriton")
print(p.Path(spec.origin).parents[1] / "nvidia_pytriton.libs" if spec and spec.origin else "")')
    [[ -d $libraries ]] || fail "nvidia-pytriton is not installed for $python: pip install 'muserve[triton]'"
    ln -sfn "$libraries"/libb64-*.so.0d "$home/lib/libb64.so.0d"
    ln -sfn "$libraries"/libcudart-*.so.12.* "$home/lib/libcudart.so.12"
}

[[ -x $home/perf_analyzer ]] || fetch
link_libraries
LD_LIBRARY_PATH=$home/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec "$home/perf_analyzer" "$@"
