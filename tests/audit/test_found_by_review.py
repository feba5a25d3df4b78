"""What users with fresh eyes found, and must not come back."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from brix_core import BRIX, BrixConfigurationError, BrixGuardError, BrixReplayError, session
from brix_core.audit.canonical import canonical, digest, digest_of, parsed
from brix_core.audit.log import close_logs, flush_logs
from brix_core.audit.matching import first_difference
from brix_core.audit.verify import verify
from brix_core.demo import DemoServer
from tests.audit.logs import KEY, Parrot, write_log

LOG = "brix_audit.jsonl"


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


def append_forged_line(path: Path) -> None:
    """A line that follows the last one as it should, by somebody without the key."""
    last = (path / LOG).read_bytes().splitlines()[-1]
    fields = parsed(last)
    log = {
        "kind": "call",
        "sequence": fields["log"]["sequence"] + 1,
        "previous": digest_of(last),
        "chain": "00000000-0000-4000-8000-000000000000",
    }
    entry = {"session_id": "FORGED", "sequence": 1, "chain_hash": digest({"genesis": "FORGED"}), "log": log}
    with (path / LOG).open("ab") as file:
        file.write(canonical(entry) + b"\n")


@pytest.mark.parametrize("key", [None, KEY])
def test_a_forged_line_behind_the_end_of_a_closed_log_is_never_taken_up(tmp_path: Path, key: Any) -> None:
    options = {} if key is None else {"log_key": key}
    write_log(tmp_path, 3, **options)
    append_forged_line(tmp_path)
    assert not verify(tmp_path, key).ok
    write_log(tmp_path, 3, **options)
    found = verify(tmp_path, key)
    assert found.entries == 6
    assert any("stood behind the end of a log that was closed" in problem.what for problem in found.problems)


def test_a_forged_line_behind_the_head_of_a_sealed_log_is_set_aside(tmp_path: Path) -> None:
    write_log(tmp_path, 3, closed=False, log_key=KEY)
    append_forged_line(tmp_path)
    assert verify(tmp_path, KEY).unsealed == 1
    write_log(tmp_path, 3, log_key=KEY)
    found = verify(tmp_path, KEY)
    assert (found.ok, found.entries) == (True, 6)
    assert "set aside" in found.notes[0]
    (aside,) = tmp_path.glob("brix_audit.torn-*")
    assert b"FORGED" in aside.read_bytes()


def test_a_child_goes_on_with_a_chain_of_its_own(tmp_path: Path) -> None:
    script = """
        import os, sys
        from brix_core import BRIX, flush_logs
        from tests.audit.logs import Parrot
        client = BRIX.wrap(Parrot(), log_path=sys.argv[1], session_id="s")
        client.complete_sync("before")
        flush_logs()
        child = os.fork()
        client.complete_sync("after")
        flush_logs()
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        client.complete_sync("later")
    """
    run(script, tmp_path)
    found = verify(tmp_path)
    assert (found.problems, found.entries) == ([], 4)


def test_numbers_beyond_64_bits_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_log(tmp_path, 3, redact=lambda entry: {**entry, "big": 2**70, "bigger": -(10**30), "long": "1" * 40})
    assert verify(tmp_path).problems == []


def test_a_hook_that_ends_the_program_does_not_end_the_log(tmp_path: Path) -> None:
    client = BRIX.wrap(Parrot(), log_path=tmp_path, redact=lambda entry: sys.exit(3))
    client.complete_sync("hello")
    flush_logs()
    assert verify(tmp_path).entries == 1


def test_a_stream_that_is_open_at_the_end_of_the_program_is_abandoned(server: DemoServer, tmp_path: Path) -> None:
    script = """
        import sys, openai
        from brix_core import BRIX
        client = BRIX.wrap(openai.OpenAI(api_key="x", base_url=sys.argv[2]), model="gpt-4o-mini", log_path=sys.argv[1])
        client.complete_sync("hello")
        stream = client.stream("many words")
        next(stream)
    """
    run(script, tmp_path, server.base_url)
    entries = [parsed(line) for line in (tmp_path / LOG).read_bytes().splitlines()]
    assert [entry["outcome"] for entry in entries if entry["log"]["kind"] == "call"] == ["ok", "abandoned"]
    assert verify(tmp_path).closed


class City(BaseModel):
    name: str


def test_a_recording_without_a_schema_gives_no_answer_with_one(server: DemoServer, tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    with openai.OpenAI(api_key="x", base_url=server.base_url) as inner:
        BRIX.wrap(inner, model="gpt-4o-mini", record=file).complete_sync("same")
        client = BRIX.wrap(inner, model="gpt-4o-mini", replay=file, response_schema=City)
        with pytest.raises(BrixReplayError, match="another response format"):
            client.complete_sync("same")


def test_a_key_that_is_a_path_is_read_and_never_used_as_the_secret(tmp_path: Path) -> None:
    key = tmp_path / "log.key"
    key.write_bytes(KEY)
    write_log(tmp_path / "log", 2, log_key=str(key))
    assert verify(tmp_path / "log", KEY).ok
    with pytest.raises(BrixConfigurationError, match="cannot be read"):
        BRIX.wrap(Parrot(), log_path=tmp_path / "other", log_key="/run/secrets/there-is-no-such-key")


def test_a_log_that_was_set_back_is_found_by_an_end_kept_elsewhere(tmp_path: Path) -> None:
    write_log(tmp_path / "log", 3, log_key=KEY)
    shutil.copytree(tmp_path / "log", tmp_path / "old")
    write_log(tmp_path / "log", 3, log_key=KEY)
    end = verify(tmp_path / "log", KEY).end
    write_log(tmp_path / "log", 1, log_key=KEY)
    assert verify(tmp_path / "log", KEY, expect=end).ok
    assert verify(tmp_path / "old", KEY).ok  # by itself, nothing shows
    assert "set back" in verify(tmp_path / "old", KEY, expect=end).problems[0].what
    with pytest.raises(BrixConfigurationError, match="17:9f86d0"):
        verify(tmp_path / "log", KEY, expect="latest")


def test_a_folder_that_was_deleted_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    client = BRIX.wrap(Parrot(), log_path=path, session_id="s")
    client.complete_sync("hello")
    flush_logs()
    for file in path.glob("brix_audit.*"):
        file.unlink()
    client.complete_sync("hello")
    flush_logs()
    assert [problem.what[:34] for problem in verify(path).problems] == ["found by the writer: the log that "]


def test_one_log_that_cannot_be_written_does_not_keep_others_from_it(tmp_path: Path) -> None:
    good, bad = (BRIX.wrap(Parrot(), log_path=tmp_path / name, record=False) for name in ("good", "bad"))
    bad.complete_sync("hello")
    flush_logs()
    shutil.rmtree(tmp_path / "bad")
    (tmp_path / "bad").write_text("in the way")
    bad.complete_sync("hello")
    good.complete_sync("hello")
    with pytest.raises(BrixGuardError, match=r"could not be written.*bad"):
        flush_logs()
    assert verify(tmp_path / "good").entries == 1
    (tmp_path / "bad").unlink()
    (tmp_path / "bad").mkdir()
    close_logs()


def test_a_session_named_like_a_key_is_written_by_another_name(tmp_path: Path) -> None:
    client = BRIX.wrap(Parrot(), log_path=tmp_path)
    secret = "sk-proj-abcdefghijklmnop123456"
    with session(secret):
        client.complete_sync("hello")
    flush_logs()
    text = b"".join(file.read_bytes() + file.name.encode() for file in tmp_path.rglob("*") if file.is_file())
    assert secret.encode() not in text
    assert len(client.get_traces(secret)) == 1
    assert BRIX.replay(secret, tmp_path).total_calls == 1
    assert verify(tmp_path).ok


def test_record_and_replay_are_not_taken_together(tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    BRIX.wrap(Parrot(), record=file).complete_sync("hello")
    with pytest.raises(BrixConfigurationError, match="record and replay are given together"):
        BRIX.wrap(Parrot(), record=tmp_path / "other.jsonl", replay=file)


def test_the_nearest_record_is_the_one_that_is_compared(tmp_path: Path) -> None:
    file = tmp_path / "calls.jsonl"
    client = BRIX.wrap(Parrot(), record=file)
    for prompt in ("aaaa", "The weather in Oslo today please", "bbbb"):
        client.complete_sync(prompt)
    with pytest.raises(BrixReplayError, match="recorded 'The weather in Oslo today please'"):
        BRIX.wrap(Parrot(), replay=file).complete_sync("The weather in Rome today please")


def test_what_was_put_in_or_left_out_is_said() -> None:
    one, two = {"role": "user", "content": "one"}, {"role": "user", "content": "two"}
    system = {"role": "system", "content": "Be brief."}
    assert first_difference([one, two], [system, one, two]).startswith("messages[0] is new: came")
    assert first_difference([system, one], [one]).startswith("messages[0] is missing: recorded")
    assert first_difference([one], [{**one, "role": "system"}]).startswith("messages[0].role differs")


def test_a_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    theirs = json.dumps({"run_id": "1", "chain_hash": hashlib.sha256(b"x").hexdigest()}) + "\n"
    (tmp_path / LOG).write_text(theirs)
    with pytest.raises(BrixConfigurationError, match="a file of another program"):
        BRIX.wrap(Parrot(), log_path=tmp_path)
    assert (tmp_path / LOG).read_text() == theirs


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((3, "log"), "session id"),
        (("s", 3), "log_path must be a folder's path"),
        (("s", ""), "log_path must be a folder's path"),
    ],
)
def test_what_cannot_be_replayed_is_said(arguments: Any, said: str) -> None:
    with pytest.raises(BrixConfigurationError, match=said):
        BRIX.replay(*arguments)


def test_recordings_that_cannot_be_written_wait_in_bounded_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("brix_core.audit.log.MAX_UNWRITTEN", 5)
    client = BRIX.wrap(Parrot(), log_path=tmp_path, session_id="s")
    (tmp_path / ".brix_sessions").write_text("in the way")
    for number in range(12):
        client.complete_sync(f"question {number}")
    with pytest.raises(BrixGuardError, match="could not be written"):
        flush_logs()
    assert "is lost: too many wait" in caplog.text
    (tmp_path / ".brix_sessions").unlink()
    flush_logs()
    replay = BRIX.replay("s", tmp_path)
    assert replay.total_calls == 5
    assert replay.complete_sync("question 11") == "question 11"
    assert verify(tmp_path).ok
