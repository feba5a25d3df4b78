"""Writes a log in children that are killed, and tells what they had been told was written.

A script, so that no thread of the test's process is forked: ``python -m tests.audit.killed FOLDER TIMES FSYNC``.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from brix_core import BRIX
from brix_core.audit.verify import verify
from tests.audit.logs import Parrot


def child(folder: Path, fsync: str, told: int) -> None:
    client = BRIX.wrap(Parrot(), log_path=folder, strict_mode=True, log_fsync=fsync, log_max_bytes=40_000)
    while True:
        client.complete_sync("x" * random.randrange(3_000))
        os.write(told, b".")


def main(folder: Path, times: int, fsync: str) -> None:
    dice = random.Random(8)
    BRIX.wrap(Parrot(), log_path=folder.with_name("other"))  # so that a child need not import anything
    BRIX.wrap(Parrot()).complete_sync("hello")
    acknowledged = 0
    for number in range(times):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            child(folder, fsync, write)
        os.close(write)
        if number % 3:  # else it may be killed before its first call, as early as it is
            acknowledged += len(os.read(read, 1))
        time.sleep(dice.uniform(0.0, 0.03))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while told := os.read(read, 65_536):
            acknowledged += len(told)
        os.close(read)
        if acknowledged:
            found = verify(folder)
            assert found.ok, found.problems
            assert found.entries >= acknowledged, (found.entries, acknowledged)
    found = verify(folder)
    assert found.ok, found.problems
    print(acknowledged, found.entries, len(found.files), len(found.notes), len(list(folder.glob("*.torn-*"))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
