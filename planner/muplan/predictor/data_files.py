"""Opening chat data by what a file holds, not by its name: JSON, JSON Lines (gzip or not), Parquet."""

from __future__ import annotations

import codecs
import gzip
import importlib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from muplan.predictor.json_objects import objects
from muserve.errors import InputError

ProgressReport = Callable[[int, int], None]
"""Called with (bytes read, bytes in all)."""

_READ_CHARS = 1 << 20
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_BATCH_ROWS = 256
_CHAT_COLUMNS = ("conversation_id", "id", "model", "conversation", "conversations", "messages")


def read_objects(
    path: Path,
    on_progress: ProgressReport | None = None,
    on_skip: Callable[[str], None] = lambda reason: None,
) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON file or the rows of a Parquet file one by one, in constant memory.

    ``on_skip`` is told why, once for each damaged object or line that is left out.

    Raises InputError when the file cannot be read, or is Parquet and pyarrow is missing.
    """
    try:
        with path.open("rb") as file:
            total = file.seek(0, 2)
            file.seek(0)
            magic = file.read(4)
            file.seek(0)
            if magic == _PARQUET:
                yield from _parquet_rows(path, total, on_progress)
            else:
                yield from objects(_chunks(file, magic, total, on_progress), str(path), on_skip)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _chunks(file: IO[bytes], magic: bytes, total: int, on_progress: ProgressReport | None) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    content: Any = gzip.GzipFile(fileobj=file) if magic.startswith(_GZIP) else file
    while data := content.read(_READ_CHARS):
        if on_progress is not None:
            on_progress(file.tell(), total)
        yield decoder.decode(data)


def _parquet_rows(path: Path, total: int, on_progress: ProgressReport | None) -> Iterator[dict[str, Any]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
        refusal = importlib.import_module("pyarrow").ArrowException
    except ImportError as error:  # missing, or built for another NumPy
        raise InputError(
            f'{path}: reading Parquet needs pyarrow: pip install "muserve[parquet]" ({error})'
        ) from error
    try:
        with parquet.ParquetFile(path) as table:
            columns = [name for name in table.schema_arrow.names if name in _CHAT_COLUMNS]
            groups = table.num_row_groups
            for group in range(groups):
                for batch in table.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns):
                    yield from batch.to_pylist()
                if on_progress is not None:
                    on_progress(total * (group + 1) // groups, total)
    except refusal as error:
        raise InputError(f"{path}: not a Parquet file that pyarrow can read: {error}") from error
