"""Lines added to a file that several processes may write, each of which may be killed at any moment.

A line is one write to a file opened for appending, so that lines of several writers do not mix. What a killed process,
or a full disk, left of its last line stays a line of its own, which readers pass over.
"""

from __future__ import annotations

import os
from pathlib import Path


def append_line(path: Path, line: bytes, *, sync: bool = False) -> None:
    """Add a line, its line break included, to a file only its owner can read; made when there is none.

    Args:
        path: The file.
        line: The line.
        sync: Whether it must have reached the disk when this returns.

    Raises:
        OSError: It could not be written, or not whole.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "lines.jsonl")
        >>> _ = path.write_bytes(b'{"whole": 1}' + bytes([10]) + b'{"tor')
        >>> append_line(path, b'{"whole": 2}' + bytes([10]))
        >>> path.read_text().splitlines()
        ['{"whole": 1}', '{"tor', '{"whole": 2}']
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(file).st_size
        is_torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
        text, done = b"\n" * is_torn + line, 0
        while done < len(text):
            done += os.write(file, text[done:])
        if sync:
            os.fsync(file)
    finally:
        os.close(file)


__all__ = ["append_line"]
