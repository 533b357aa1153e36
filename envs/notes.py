"""Lines that a user should read, each printed once; a worker's go to its parent, through EnvGroup."""

import sys

_noted: set[str] = set()
outbox: list[str] | None = None  # lines that a worker sends with its next answer


def note(line: str) -> None:
    """Prints a line on stderr, unless it was printed before."""
    if line in _noted:
        return
    _noted.add(line)
    if outbox is None:
        print(line, file=sys.stderr, flush=True)
    else:
        outbox.append(line)
