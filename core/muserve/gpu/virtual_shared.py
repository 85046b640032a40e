"""The state of one virtual GPU as its participants share it: every access under the file's lock.

Whoever looks first brings the state up to date and takes off the work of dead processes, so no daemon is
needed and no participant is special.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from muserve.errors import GpuLostError
from muserve.gpu.parts import Part, load_part, part_bytes, part_names
from muserve.gpu.virtual_codec import decode, encode
from muserve.gpu.virtual_file import LockedState, StateFile
from muserve.gpu.virtual_history import history_file
from muserve.gpu.virtual_process import boot_id, process_start
from muserve.gpu.virtual_state import VirtualState, discard, new_state, rest


@dataclass(frozen=True, slots=True)
class Access:
    """The lock is held: ``state`` is current, ``generation`` its number in the file."""

    state: VirtualState
    generation: int
    locked: LockedState

    def store(self, state: VirtualState) -> int:
        """Replace the state and return the new generation."""
        return self.locked.write(encode(state))


class SharedState:
    """One virtual GPU's shared state. Errors: GpuLostError, GpuBusyError."""

    def __init__(self, path: Path) -> None:
        self.file = StateFile(path)
        self.boot_id = boot_id()
        self._me: tuple[int, int | None] | None = None
        with self.file.locked() as locked:
            self.part: Part = load_part(_decoded(locked, path).part, path.parent)

    @contextmanager
    def access(self) -> Iterator[Access]:
        """Exclusive access to the state, brought up to date (``rest``) and rid of dead processes' jobs."""
        with self.file.locked() as locked:
            stored = _decoded(locked, self.file.path)
            if stored.part != self.part.name:
                raise GpuLostError(f"{self.file.path}: this virtual GPU is now a {stored.part}")
            state = rest(self._of_this_boot(stored), time.monotonic(), self.part)
            starts = {pid: self.process_start(pid) for pid in {job.pid for job in state.jobs}}
            state = discard(state, lambda job: starts[job.pid] != job.process_start)
            if state.boot_id != stored.boot_id or len(state.jobs) < len(stored.jobs):
                locked.write(encode(state))
            yield Access(state, locked.generation(), locked)

    def change(self, change: Callable[[VirtualState], VirtualState]) -> Access:
        """Store what ``change`` makes of the current state, and return it."""
        with self.access() as access:
            state = change(access.state)
            return Access(state, access.store(state), access.locked)

    def process_start(self, pid: int) -> int | None:
        """When process ``pid`` started; this process is asked for only once (a fork is another one)."""
        if pid != os.getpid():
            return process_start(pid)
        if self._me is None or self._me[0] != pid:
            self._me = (pid, process_start(pid))
        return self._me[1]

    def _of_this_boot(self, stored: VirtualState) -> VirtualState:
        """After a reboot clocks are unlocked, jobs gone and counters at zero, as on a real GPU."""
        if stored.boot_id == self.boot_id:
            return stored
        return new_state(
            self.part,
            index=stored.index,
            uuid=stored.uuid,
            boot_id=self.boot_id,
            now_s=time.monotonic(),
        )


def create_shared(path: Path, part: Part, index: int, uuid: str, *, reset: bool) -> None:
    """Make sure a state of this GPU exists at ``path``; see ``VirtualGpu.create``.

    A part that the catalogue does not have is kept beside it, so that whoever opens the GPU finds it; when
    another part of that name was kept there, the GPU is a new one.
    """
    if part.name not in part_names() and _keep(part, path.parent):
        reset = True
    fresh = new_state(part, index=index, uuid=uuid, boot_id=boot_id(), now_s=time.monotonic())
    file = StateFile(path)
    if file.create(encode(fresh)):
        return
    with file.locked() as locked:
        if reset or not _describes(locked, fresh, path):
            locked.write(encode(fresh))
            history_file(path).unlink(missing_ok=True)


def _keep(part: Part, directory: Path) -> bool:
    """Keep the part in ``directory``; True when that replaced a different one."""
    kept, content = directory / f"{part.name}.json", part_bytes(part)
    replaced = kept.exists()
    if replaced and kept.read_bytes() == content:
        return False
    directory.mkdir(parents=True, exist_ok=True)
    # In one step, because other processes may be reading it.
    fresh = directory / f".{part.name}.{os.getpid()}.new"
    fresh.write_bytes(content)
    fresh.replace(kept)
    return replaced


def _decoded(locked: LockedState, path: Path) -> VirtualState:
    payload = locked.read()
    try:
        return decode(payload)
    except (ValueError, TypeError, KeyError) as error:
        raise GpuLostError(f"{path}: not the state of a virtual GPU of this version") from error


def _describes(locked: LockedState, wanted: VirtualState, path: Path) -> bool:
    """True when the stored state is readable and of the GPU that ``wanted`` describes."""
    try:
        stored = _decoded(locked, path)
    except GpuLostError:
        return False
    return (stored.part, stored.index, stored.uuid) == (wanted.part, wanted.index, wanted.uuid)
