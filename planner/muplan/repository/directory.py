"""Writes the planned files to a directory: all of them or none.

Everything is first written beside the target and swapped in by renaming. ``manifest.json`` is written
last; it lists every file with its SHA-256 and marks the directory as ours. Only such a directory is
ever replaced, and what its manifest does not list (the state of virtual GPUs, a user's notes) moves
along.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath

from muplan.interruption import uninterrupted
from muserve.errors import InputError

MANIFEST_FILE = "manifest.json"
MANIFEST_FORMAT = "muserve-plan-1"
REPOSITORY_NAME = "model_repository"

# Contents of a file, a file or directory to copy, or something that writes itself to a path.
Artefact = bytes | Path | Callable[[Path], None]


def check_directory(directory: Path) -> None:
    """InputError unless ``directory`` may be written: absent, empty, or written by us before."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise InputError(f"{directory}: expected a directory, got a file")
    try:
        entries = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise InputError(f"{directory}: expected a readable directory: {error.strerror}") from error
    if entries and read_manifest(directory) is None:
        raise InputError(
            f"{directory}: expected an empty directory or one written by muplan, "
            f"got one without our {MANIFEST_FILE} that holds {entries[0]}"
        )


def read_manifest(directory: Path) -> dict[str, str] | None:
    """The files that we wrote to ``directory`` with their SHA-256; None when it is not ours."""
    try:
        document = json.loads((directory / MANIFEST_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(document, dict) or document.get("format") != MANIFEST_FORMAT:
        return None
    files = document.get("files")
    return files if isinstance(files, dict) else None


def write_directory(directory: Path, files: Mapping[PurePosixPath, Artefact]) -> None:
    """Write ``files`` as ``directory``, replacing what an earlier call wrote there.

    Raises InputError when the directory is not ours to replace or cannot be written; it is then as it
    was, and so it is after a KeyboardInterrupt.
    """
    check_directory(directory)
    target = directory.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
        # Uninterrupted until the scratch directory is gone as well: contexts end in reverse order.
        with ExitStack() as last_step, beside as scratch:
            fresh = Path(scratch, "new")
            fresh.mkdir()
            _write_files(fresh, files)
            last_step.enter_context(uninterrupted())
            _swap(fresh, target, Path(scratch, "old"))
    except OSError as error:
        raise InputError(f"{directory}: expected a writable directory: {error.strerror or error}") from error


def _write_files(directory: Path, files: Mapping[PurePosixPath, Artefact]) -> None:
    for name, artefact in sorted(files.items()):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(artefact, bytes):
            path.write_bytes(artefact)
        elif not isinstance(artefact, Path):
            artefact(path)
        elif artefact.is_dir():
            shutil.copytree(artefact, path)
        else:
            shutil.copyfile(artefact, path)
    written = sorted(path for path in directory.rglob("*") if path.is_file())
    digests = {path.relative_to(directory).as_posix(): _sha256(path) for path in written}
    manifest = {"files": digests, "format": MANIFEST_FORMAT}
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _swap(fresh: Path, target: Path, aside: Path) -> None:
    """Put ``fresh`` in the place of ``target``, whose remains end up in ``aside``."""
    if not target.exists():
        fresh.rename(target)
        return
    listed = {PurePosixPath(name) for name in read_manifest(target) or {}} | {PurePosixPath(MANIFEST_FILE)}
    target.rename(aside)
    try:
        fresh.rename(target)
    except OSError:
        aside.rename(target)
        raise
    _carry_over(aside, target, listed)


def _carry_over(old: Path, new: Path, listed: set[PurePosixPath]) -> None:
    """Move the files of ``old`` that are not ``listed`` to ``new``, unless something new has their name."""
    for parent, _, names in os.walk(old):
        for name in names:
            path = Path(parent, name)
            relative = path.relative_to(old)
            # A repository is ours alone: a left-over there would look like a model to Triton.
            if PurePosixPath(relative) in listed or REPOSITORY_NAME in relative.parts:
                continue
            if (new / relative).exists():
                continue
            (new / relative).parent.mkdir(parents=True, exist_ok=True)
            path.rename(new / relative)
