#!/usr/bin/env python3
"""Rewrite what the repository commits of the planner's output: ``model_repository/`` (what the quickstart's
node serves) and the spec's JSON Schema. Run it after changing the planner, the backends or the quickstart."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from muplan.pipeline import generate
from muplan.repository.directory import REPOSITORY_NAME
from muplan.spec import SCHEMA_FILE, read_spec, schema_bytes

ROOT = Path(__file__).resolve().parents[1]
NODE = "node0"


def main() -> None:
    SCHEMA_FILE.write_bytes(schema_bytes())
    target = ROOT / REPOSITORY_NAME
    with tempfile.TemporaryDirectory() as scratch:
        plan_dir = Path(scratch, "quickstart")
        generate(read_spec(ROOT / "examples" / "quickstart.yaml"), plan_dir)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(plan_dir / NODE / REPOSITORY_NAME, target)
    files = [path for path in target.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(f"wrote {SCHEMA_FILE.relative_to(ROOT)}")
    print(f"wrote {len(files)} files, {size / 1e6:.2f} MB, to {target.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
