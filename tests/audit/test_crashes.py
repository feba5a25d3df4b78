"""What is left when a process is killed, a disk is full, or many processes write at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from brix_core import BRIX
from brix_core.audit.canonical import parsed
from brix_core.audit.log import close_logs, flush_logs
from brix_core.audit.verify import verify
from tests.audit.logs import Parrot, write_log


def run(script: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("fsync", "times"), [("never", 150), ("always", 50)])
def test_nothing_acknowledged_is_lost_by_kill_9_at_random_moments(tmp_path: Path, fsync: str, times: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.audit.killed", str(tmp_path / "log"), str(times), fsync],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    acknowledged, entries, files, *_ = map(int, done.stdout.split())
    assert entries >= acknowledged >= 2 * times // 3  # it got to work between the kills
    assert files > 1
    write_log(tmp_path / "log", 1, log_max_bytes=40_000)
    found = verify(tmp_path / "log")
    assert (found.ok, found.closed, found.unsealed) == (True, True, 0)


def test_a_torn_last_line_is_set_aside_reported_and_the_chain_goes_on(tmp_path: Path) -> None:
    write_log(tmp_path, 3, closed=False)
    log = tmp_path / "brix_audit.jsonl"
    with log.open("ab") as file:
        file.write(b'{"attempts":[],"torn')
    found = verify(tmp_path)
    assert (found.ok, found.entries) == (True, 3)
    assert "being written" in found.notes[0]
    write_log(tmp_path, 2)
    found = verify(tmp_path)
    assert (found.ok, found.entries, found.closed) == (True, 5, True)
    assert "set aside in brix_audit.torn-" in found.notes[0]
    (aside,) = tmp_path.glob("brix_audit.torn-*")
    assert aside.read_bytes() == b'{"attempts":[],"torn'


def test_a_log_that_was_cut_off_is_gone_on_with_and_stays_broken(tmp_path: Path) -> None:
    write_log(tmp_path, 5, closed=False)
    log = tmp_path / "brix_audit.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-2]))
    assert not verify(tmp_path).ok
    write_log(tmp_path, 5)
    found = verify(tmp_path)
    assert not found.ok
    assert found.entries == 8  # what came later was written all the same
    assert any("bytes were missing" in problem.what for problem in found.problems)


def test_a_log_without_its_head_is_set_aside_and_said_to_be(tmp_path: Path) -> None:
    write_log(tmp_path, 3)
    (tmp_path / "brix_audit.head").unlink()
    assert "head file is missing" in verify(tmp_path).problems[0].what
    write_log(tmp_path, 2)
    found = verify(tmp_path)
    assert found.entries == 2
    assert any("head file was missing" in problem.what for problem in found.problems)
    (aside,) = tmp_path.glob("brix_audit.headless-*")
    assert aside.read_bytes().count(b'"kind":"call"') == 3


WRITER = """
    import sys
    from brix_core import BRIX
    from tests.audit.logs import Parrot
    folder, number = sys.argv[1:]
    clients = [BRIX.wrap(Parrot(), log_path=folder, session_id="shared", log_max_bytes=30_000) for _ in range(2)]
    for count in range(100):
        clients[count % 2].complete_sync(f"process {number}, call {count}")
"""


def test_several_processes_write_to_one_folder(tmp_path: Path) -> None:
    running = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path), str(number)])
        for number in range(4)
    ]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0, 0]
    found = verify(tmp_path)
    assert (found.ok, found.entries, found.closed, found.notes) == (True, 400, True, [])
    assert len(found.files) > 3
    chains = set()
    for file in tmp_path.glob("*.jsonl"):
        for line in file.read_bytes().splitlines():
            fields = parsed(line)
            if fields["log"]["kind"] == "call":
                chains.add((fields["log"]["chain"], fields["sequence"]))
    assert len(chains) == 400  # eight clients, fifty calls each, and none twice


def test_what_a_child_and_its_parent_log_after_a_fork(tmp_path: Path) -> None:
    script = """
        import os, sys
        from brix_core import BRIX
        from brix_core.audit.log import close_logs
        from tests.audit.logs import Parrot
        client = BRIX.wrap(Parrot(), log_path=sys.argv[1])
        client.complete_sync("before")
        child = os.fork()
        for number in range(20):
            client.complete_sync(f"after {number}")
        if child == 0:
            close_logs()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    """
    run(script, tmp_path)
    found = verify(tmp_path)
    assert found.ok, found.problems
    assert found.entries in (41, 42)  # the entry before is the parent's, or had been queued in both


def test_children_of_multiprocessing_leave_nothing_unwritten(tmp_path: Path) -> None:
    script = """
        import multiprocessing, sys
        from brix_core import BRIX
        from tests.audit.logs import Parrot
        def work(folder):
            client = BRIX.wrap(Parrot(), log_path=folder)
            for number in range(10):
                client.complete_sync(f"question {number}")
        if __name__ == "__main__":
            context = multiprocessing.get_context("fork")
            children = [context.Process(target=work, args=(sys.argv[1],)) for _ in range(3)]
            for child in children:
                child.start()
            for child in children:
                child.join()
    """
    run(script, tmp_path)
    found = verify(tmp_path)
    assert (found.ok, found.entries) == (True, 30)


FULL_DISK = """
    import json, resource, signal, sys, time
    from brix_core import BRIX, BrixGuardError
    from brix_core.audit.log import flush_logs
    from tests.audit.logs import Parrot
    folder, strict = sys.argv[1], sys.argv[2] == "strict"
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    client = BRIX.wrap(Parrot(), log_path=folder, strict_mode=strict)
    client.complete_sync("while there is room")
    flush_logs()
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_500, resource.RLIM_INFINITY))
    failures = []
    for number in range(3):
        try:
            client.complete_sync(f"question {number}")
        except BrixGuardError as error:
            failures.append(str(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    flush_logs()
    print(json.dumps([failures, len(client.get_traces())]))
"""


def test_in_strict_mode_a_call_whose_entry_cannot_be_written_fails(tmp_path: Path) -> None:
    failures, traces = json.loads(run(FULL_DISK, tmp_path, "strict"))
    assert traces == 4
    assert len(failures) >= 2
    assert "could not be written" in failures[0]
    assert "strict_mode" in failures[0]
    found = verify(tmp_path)
    assert (found.ok, found.entries) == (True, 4)  # they were written once there was room again


def test_otherwise_calls_go_on_and_their_entries_are_written_later(tmp_path: Path) -> None:
    failures, traces = json.loads(run(FULL_DISK, tmp_path, "lenient"))
    assert (failures, traces) == ([], 4)
    found = verify(tmp_path)
    assert (found.ok, found.entries) == (True, 4)


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "log"
    write_log(folder, 30, log_max_bytes=4_096)
    write_log(folder, 30, log_max_bytes=4_096)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in folder.rglob("*") if file.is_file()} == {0o600}
    assert len(list(folder.glob("*.jsonl"))) > 1


def test_secrets_are_not_written(tmp_path: Path) -> None:
    client = BRIX.wrap(Parrot(), log_path=tmp_path)
    with pytest.raises(ConnectionError):
        client.complete_sync("fail")
    close_logs()
    text = (tmp_path / "brix_audit.jsonl").read_text()
    assert "sk-proj" not in text
    assert "the key was [secret]" in text
    assert "sk-proj" not in client.get_traces()[0]["error_message"]


def test_a_hook_takes_out_more_and_cannot_take_out_an_entry(tmp_path: Path) -> None:
    def redact(entry: dict[str, object]) -> dict[str, object]:
        if entry["outcome"] == "failed":
            raise RuntimeError("this hook is broken")
        return {"model": "somebody's", "outcome": "never called"}

    client = BRIX.wrap(Parrot(), log_path=tmp_path, redact=redact, session_id="s")
    client.complete_sync("hello")
    with pytest.raises(ConnectionError):
        client.complete_sync("fail")
    flush_logs()
    newest, oldest = client.get_traces()
    assert (oldest["model"], oldest["outcome"], oldest["session_id"]) == ("somebody's", "ok", "s")
    assert (newest["outcome"], newest["error_message"]) == ("failed", None)
    found = verify(tmp_path)
    assert (found.ok, found.entries) == (True, 2)


def test_a_writer_is_not_kept_waiting_by_its_event_loop(tmp_path: Path) -> None:
    """Strict mode waits in a thread: a hundred calls share their batches."""
    import asyncio

    async def main() -> None:
        client = BRIX.wrap(Parrot(), log_path=tmp_path, strict_mode=True, log_fsync="always")
        await asyncio.gather(*(client.complete(f"question {number}") for number in range(100)))

    asyncio.run(main())
    found = verify(tmp_path)
    assert (found.ok, found.entries) == (True, 100)


def test_brix_verify(tmp_path: Path) -> None:
    brix = Path(sys.executable).with_name("brix")
    log = tmp_path / "log"
    write_log(log, 4, log_key=b"a secret of enough bytes")

    def verified(*arguments: object, **variables: str) -> tuple[int, str]:
        done = subprocess.run(
            [brix, "verify", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, **variables},
        )
        return done.returncode, done.stdout + done.stderr

    code, text = verified(log, "--key-env", "LOG_KEY", LOG_KEY="a secret of enough bytes")
    assert (code, "4 calls" in text, "every seal" in text) == (0, True, True)
    text_of = (log / "brix_audit.jsonl").read_bytes()
    (log / "brix_audit.jsonl").write_bytes(text_of.replace(b'"stream":false', b'"stream":true ', 1))
    code, text = verified(log, "--json")
    found = json.loads(text)
    assert (code, found["ok"], found["first_problem"]["line"]) == (1, False, 2)
    assert verified(tmp_path / "nothing")[0] == 2
    code, text = verified(log, "--key-env", "NO_SUCH_VARIABLE")
    assert (code, "NO_SUCH_VARIABLE is not set" in text) == (2, True)
