"""Files of which every part is whole: written under their name at once, or record by record."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path | str, mode: str = "wb") -> Iterator[IO]:
    """Opens a file that gets its name atomically, once it is complete and on disk; after an error, never."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    try:
        with open(aside, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename too
        finally:
            os.close(folder)
    finally:
        aside.unlink(missing_ok=True)


class RecordFile:
    """A file to which records are appended, each as a whole or, if the disk is full, not at all."""

    def __init__(self, path: Path):
        self.path, self._file = path, path.open("ab", buffering=0)

    def write(self, record: bytes) -> None:
        end = os.fstat(self._file.fileno()).st_size
        if self._file.write(record) != len(record):
            self._file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def close(self) -> None:
        self._file.close()
