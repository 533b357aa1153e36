"""Files that appear whole."""

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
