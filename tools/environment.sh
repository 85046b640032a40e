# Sourced by tools/demo.sh and tools/test.sh: `prepare EXTRA` makes .venv hold this checkout with EXTRA.
# Nothing is installed when neither pyproject.toml nor constraints.txt changed since the last time.

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
fail() { printf 'Error: %s\n' "$*" >&2; exit 2; }

# The embedded Triton needs NumPy 1, which has wheels up to Python 3.12, and a shared libpython.
usable() {
    "$1" - 2>/dev/null <<'PYTHON'
import sys, sysconfig
import ensurepip, venv
good = (3, 11) <= sys.version_info[:2] <= (3, 12) and sysconfig.get_config_var("Py_ENABLE_SHARED")
sys.exit(0 if good else 1)
PYTHON
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3 python}; do
        if usable "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

fingerprint() {
    { printf '%s\n' "$PWD"; cat pyproject.toml constraints.txt; } | cksum
}

# A stamp is written last, so an interrupted installation is done again.
installed() {
    [ -f ".venv/.muserve-$1" ] && [ "$(cat ".venv/.muserve-$1")" = "$(fingerprint)" ]
}

prepare() {
    local extra=$1 python
    if [ -x .venv/bin/python ] && ! usable .venv/bin/python; then
        fail ".venv was made by a Python that cannot run Triton's models (3.11 or 3.12 with a shared libpython): remove it and run this again"
    fi
    # Everything in [demo] is in [dev] too.
    if [ -x .venv/bin/python ] && { installed "$extra" || installed dev; }; then
        say "using .venv ($(.venv/bin/python --version)), nothing to install"
        return
    fi
    if [ ! -x .venv/bin/python ]; then
        python=$(find_python) || fail "no usable Python found (tried ${PYTHON:-python3.11 python3.12 python3 python}): need 3.11 or 3.12 with the venv module and a shared libpython; name one with PYTHON=/path/to/python"
        say "creating .venv with $python ($("$python" --version))"
        "$python" -m venv .venv
    fi
    say "installing muserve[$extra] into .venv, versions pinned by constraints.txt (first time: some minutes)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extra]"
    fingerprint > ".venv/.muserve-$extra"
}
