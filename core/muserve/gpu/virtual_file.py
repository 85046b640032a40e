"""A small file that several processes read and replace, and that survives the SIGKILL of any of them.

Two slots are written in turn, each with a generation and a checksum: a write cut in half leaves the other
slot, which holds the state before it. The kernel's file lock orders the writers and dies with its
holder.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from muserve.errors import GpuBusyError, GpuLostError, GpuNotFoundError, GpuPermissionError

SLOT_BYTES = 32 * 1024
"""Room for one state: about 200 jobs at once."""

_MAGIC = b"muVGPU01"
_HEADER = struct.Struct("<8sQII")
_LOCK_TIMEOUT_S = 2.0
_LOCK_RETRY_S = 0.0002


class StateFile:
    """The file at ``path``. Stateless: it is opened anew each time, so forks and threads share nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self, payload: bytes) -> bool:
        """Make the file hold ``payload`` if there is none; False when there already is one. Atomic.

        GpuNotFoundError when its directory cannot be made or written.
        """
        # Not a tempfile, which only its own user could open: daemon and server may be two users.
        draft = self.path.with_name(f".{self.path.name}.{uuid4().hex}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise GpuNotFoundError(
                f"{self.path.parent}: expected a directory for virtual GPUs: {error.strerror}"
            ) from error
        try:
            LockedState(fd, self.path).write(payload)
            os.link(draft, self.path)
        except FileExistsError:
            return False
        finally:
            os.close(fd)
            draft.unlink()
        return True

    @contextmanager
    def locked(self) -> Iterator[LockedState]:
        """Exclusive access.

        GpuLostError when the file is gone, GpuPermissionError when it is another user's, GpuBusyError when
        the lock is not given within seconds.
        """
        with self._opened(os.O_RDWR) as fd:
            self._lock(fd)
            try:
                yield LockedState(fd, self.path)
            finally:
                # Closing would do, but a child forked meanwhile would keep the lock alive.
                fcntl.flock(fd, fcntl.LOCK_UN)

    @contextmanager
    def watched(self) -> Iterator[LockedState]:
        """Access without the lock, good only for asking for ``generation``."""
        with self._opened(os.O_RDONLY) as fd:
            yield LockedState(fd, self.path)

    @contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        try:
            fd = os.open(self.path, flags | os.O_CLOEXEC)
        except PermissionError as error:
            raise GpuPermissionError(f"{self.path}: this user may not use this virtual GPU") from error
        except OSError as error:
            raise GpuLostError(f"{self.path}: virtual GPU state is gone: {error.strerror}") from error
        try:
            yield fd
        finally:
            os.close(fd)

    def _lock(self, fd: int) -> None:
        deadline_s = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            with suppress(BlockingIOError):
                return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.monotonic() > deadline_s:
                raise GpuBusyError(
                    f"{self.path}: another process has held this virtual GPU for {_LOCK_TIMEOUT_S:g} s"
                )
            time.sleep(_LOCK_RETRY_S)


class LockedState:
    """The two slots of an open state file."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path
        self._generation: int | None = None

    def generation(self) -> int:
        """A number that grows with every write; needs no lock, costs two small reads."""
        return max(self._header(slot)[1] for slot in (0, 1))

    def read(self) -> bytes:
        """The newest payload that was written whole; GpuLostError when there is none."""
        found = self._newest()
        if found is None:
            raise GpuLostError(f"{self._path}: virtual GPU state is unreadable; generate or reset it")
        self._generation, payload = found
        return payload

    def write(self, payload: bytes) -> int:
        """Replace the payload and return the new generation; GpuBusyError when it does not fit."""
        if _HEADER.size + len(payload) > SLOT_BYTES:
            raise GpuBusyError(f"{self._path}: too many jobs at once on this virtual GPU")
        if self._generation is None:
            found = self._newest()
            self._generation = found[0] if found else 0
        generation = self._generation + 1
        header = _HEADER.pack(_MAGIC, generation, len(payload), _checksum(generation, payload))
        os.pwrite(self._fd, header + payload, (generation % 2) * SLOT_BYTES)
        self._generation = generation
        return generation

    def _header(self, slot: int) -> tuple[bytes, int, int, int]:
        raw = os.pread(self._fd, _HEADER.size, slot * SLOT_BYTES)
        if len(raw) < _HEADER.size:
            return b"", 0, 0, 0
        magic, generation, length, checksum = _HEADER.unpack(raw)
        return magic, generation, length, checksum

    def _newest(self) -> tuple[int, bytes] | None:
        headers = sorted(((self._header(slot), slot) for slot in (0, 1)), key=lambda h: -h[0][1])
        for (magic, generation, length, checksum), slot in headers:
            if magic != _MAGIC or length > SLOT_BYTES:
                continue
            payload = os.pread(self._fd, length, slot * SLOT_BYTES + _HEADER.size)
            if len(payload) == length and _checksum(generation, payload) == checksum:
                return generation, payload
        return None


def _checksum(generation: int, payload: bytes) -> int:
    return zlib.crc32(payload, generation & 0xFFFFFFFF)
