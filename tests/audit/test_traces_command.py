"""`brix traces`, and the reading of logs that grow and rotate."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from brix_core import BRIX, session
from brix_core.audit.directory import Item, LogDirectory
from brix_core.audit.log import close_logs, flush_logs
from brix_core.audit.tail import LogTail
from brix_core.cli import app
from brix_core.report import terminal
from brix_core.report.terminal import Wish
from tests.audit.logs import Parrot

ENVIRONMENT = {"COLUMNS": "80", "NO_COLOR": "1"}


def brix(*arguments: str) -> Any:
    done = CliRunner().invoke(app, ["traces", *arguments], env=ENVIRONMENT)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done


def lines(*arguments: str) -> list[str]:
    done = brix(*arguments)
    assert done.exit_code == 0, done.output
    return str(done.output).splitlines()


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    client = BRIX.wrap(Parrot(), session_id="alice", log_path=tmp_path / "log")
    client.complete_sync("one")
    with session("bob"):
        client.complete_sync("two")
        with pytest.raises(ConnectionError):
            client.complete_sync("fail")
    close_logs()
    return tmp_path / "log", client.get_traces()


def put(log: LogDirectory, *numbers: int, **fields: Any) -> None:
    log.append(
        [
            Item("call", {"run_id": f"r{number}", "session_id": "s", "outcome": "ok", **fields}, "c")
            for number in numbers
        ],
        sync=False,
    )


def test_a_line_for_each_call_the_newest_last(written: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, entries = written
    heading, *calls, summary = lines(str(folder))
    assert heading.split()[:3] == ["time,", "UTC", "session"]
    assert len(calls) == len(entries) == 3
    for line, entry in zip(calls, reversed(entries), strict=True):
        stamp = entry["timestamp"].replace("T", " ")[:19]
        assert line.startswith(stamp[:17])
        assert [entry["session_id"], entry["model"], entry["outcome"]] == line.split()[2:5]
    assert calls[2].endswith("ConnectionError: no line; the key was [secret]")
    assert summary.startswith("3 calls: 2 ok, 1 failed · $0 and 3 without a price · 0+0 tokens · p50 ")
    assert "3 attempts, 0 retries, 0 failovers · 0 with loops" in summary


def test_which_calls_are_shown(written: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, entries = written
    assert [line.split()[2] for line in lines(str(folder), "--session", "bob")[1:-1]] == ["bob", "bob"]
    (failed,) = lines(str(folder), "--outcome", "failed")[1:-1]
    assert " failed " in failed
    limited = lines(str(folder / "brix_audit.jsonl"), "--limit", "1")
    assert len(limited) == 3
    assert " failed " in limited[1]
    assert limited[2].startswith("3 calls")  # of all, shown or not
    assert len(lines(str(folder), "-n", "0")) == 2
    assert lines(str(folder), "--session", "nobody")[1:] == [
        "0 calls · $0 · 0+0 tokens · 0 attempts, 0 retries, 0 failovers · 0 with loops"
    ]
    shown = [json.loads(line) for line in lines(str(folder), "--json")]
    assert shown == list(reversed(entries))
    assert [json.loads(line) for line in lines(str(folder), "--json", "-n", "1", "--outcome", "ok")] == [entries[1]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "there is no audit log in 'nowhere'"),
        (("LOG", "--outcome", "fine"), "no call ends as 'fine'; give one of ok, refused, failed, timed_out"),
        (("LOG", "--limit", "-1"), "Invalid value for '--limit'"),
    ],
)
def test_what_cannot_be_shown_is_told(
    written: tuple[Path, list[dict[str, Any]]], arguments: tuple[str, ...], said: str
) -> None:
    done = brix(*(str(written[0]) if one == "LOG" else one for one in arguments))
    assert done.exit_code == 2
    assert said in done.output


def test_a_log_cannot_steer_the_terminal(tmp_path: Path) -> None:
    log = LogDirectory(tmp_path, None, 2**20, time.time)
    nasty = "\x1b[2J\x07\u202e\x9b1m[bold]x\r\nnew line"
    decisions = [{"guard": nasty, "decision": nasty}]
    put(log, 1, session_id=nasty, model=nasty, error=nasty, error_message=nasty, decisions=decisions, stopped_by=nasty)
    put(log, 2, session_id="\u4f60" * 50, model="m" * 5_000, outcome=nasty, timestamp=nasty)
    put(log, 3, session_id="[red]s[/red]", model="")
    output = brix(str(tmp_path)).output
    assert not set(output) & set("\x1b\x07\u202e\x9b\r")
    assert len(output.splitlines()) == 5
    assert "[red]s[/red]" in output
    assert "\\x1b[2J" in output


def test_lines_that_cannot_be_read_are_left_out_and_counted(tmp_path: Path) -> None:
    log = LogDirectory(tmp_path, None, 2**20, time.time)
    put(log, 1, 2, 3)
    file = tmp_path / "brix_audit.jsonl"
    whole = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(whole[0] + whole[1] + b"\xff\n[]\n" + whole[3] + b'{"torn')
    shown = lines(str(tmp_path))
    assert len(shown) == 4
    assert shown[-1].endswith("2 lines could not be read (see brix verify)")


def test_a_terminal_gets_a_line_for_a_call_and_colours(written: tuple[Path, list[dict[str, Any]]]) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        [sys.executable, "-m", "brix_core.cli", "traces", str(written[0])],
        stdout=theirs,
        stderr=theirs,
        env=environment,
    ) as process:
        os.close(theirs)
        output = b"".join(iter(lambda: _chunk(ours), b"")).decode()
    os.close(ours)
    assert process.returncode == 0
    shown = output.splitlines()
    assert shown[0].startswith("\x1b[2mUTC ")
    assert "\x1b[32mok\x1b[0m" in shown[1]
    assert "\x1b[31mfailed\x1b[0m" in shown[3]
    plain = [re.sub(r"\x1b\[\d*m", "", line) for line in shown]
    assert [len(line) <= 80 for line in plain[:4]] == [True] * 4
    assert [line.split()[1] for line in plain[1:4]] == ["alice", "bob", "bob"]
    assert plain[4].startswith("3 calls: 2 ok, 1 failed")


def _chunk(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # closed on the other side
        return b""


def test_a_log_is_followed_through_rotations(tmp_path: Path) -> None:
    log = LogDirectory(tmp_path, None, 4_096, time.time)
    put(log, 0)
    tail = LogTail(tmp_path)
    seen = [line.fields["run_id"] for line in tail.poll() if line.kind == "call"]
    for number in range(1, 200):
        put(log, number)
        if number % 37 == 0:  # several files later
            seen += [line.fields["run_id"] for line in tail.poll() if line.kind == "call"]
            assert seen == [f"r{one}" for one in range(number + 1)]
            assert list(tail.poll()) == []
    seen += [line.fields["run_id"] for line in tail.poll() if line.kind == "call"]
    assert seen == [f"r{one}" for one in range(200)]
    assert len(list(tmp_path.glob("brix_audit.0*.jsonl"))) > 5


def test_a_torn_line_is_waited_for_and_lines_taken_back_come_once(tmp_path: Path) -> None:
    log = LogDirectory(tmp_path, None, 2**20, time.time)
    put(log, 1)
    file = tmp_path / "brix_audit.jsonl"
    with file.open("ab") as end:
        end.write(b'{"half of')
    tail = LogTail(tmp_path)
    assert [line.kind for line in tail.poll()] == ["opened", "call"]
    assert tail.torn_bytes == 9
    put(log, 2)  # sets it aside
    assert [line.kind for line in tail.poll()] == ["recovered", "call"]
    assert tail.torn_bytes == 0
    size = file.stat().st_size
    put(log, 3)
    assert [line.fields["run_id"] for line in tail.poll()] == ["r3"]
    whole = file.read_bytes()
    os.truncate(file, size)  # a batch is taken back, as when the disk is full
    assert list(tail.poll()) == []
    file.write_bytes(whole)
    assert list(tail.poll()) == []
    put(log, 4)
    assert [line.fields["run_id"] for line in tail.poll()] == ["r4"]


def test_following_shows_calls_as_they_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = BRIX.wrap(Parrot(), session_id="alice", log_path=tmp_path / "log")
    client.complete_sync("before")
    flush_logs()
    shown: list[list[str]] = []

    def acts() -> Iterator[Callable[[], Any]]:
        yield lambda: client.complete_sync("one")
        yield lambda: [client.complete_sync(word) for word in ("two", "three")]
        yield lambda: None

    script = acts()

    def sleep(seconds: float) -> None:
        """Stands between two looks at the log; what the last one showed is noted."""
        assert seconds == terminal.POLL_SECONDS
        shown.append(capsys.readouterr().out.splitlines())
        act = next(script, None)
        if act is None:
            raise KeyboardInterrupt
        act()
        flush_logs()

    code = terminal.run(Wish(path=tmp_path / "log", follow=True), sleep)
    close_logs()
    assert code == 0
    assert [len(part) for part in shown] == [2, 1, 2, 0]
    (summary,) = capsys.readouterr().out.splitlines()
    assert summary.startswith("4 calls: 4 ok")


def test_ctrl_c_ends_following_in_good_order(tmp_path: Path) -> None:
    log = LogDirectory(tmp_path, None, 4_096, time.time)
    put(log, 1)
    with subprocess.Popen(
        [sys.executable, "-m", "brix_core.cli", "traces", str(tmp_path), "--follow", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["run_id"] == "r1"
        for number in range(2, 40):  # through rotations
            put(log, number)
        assert [json.loads(process.stdout.readline())["run_id"] for _ in range(38)] == [f"r{n}" for n in range(2, 40)]
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=20)
    assert (process.returncode, rest, errors) == (0, "", "")


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    log = LogDirectory(tmp_path, None, 2**24, time.time)
    put(log, *range(3_000), model="m" * 100)
    command = f"{sys.executable} -m brix_core.cli traces {tmp_path} --json | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    first, code = done.stdout.splitlines()
    assert json.loads(first)["run_id"] == "r0"
    assert code == "0"
    assert done.stderr == ""
