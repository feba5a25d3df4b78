"""The fixture brix_recording, in a pytest of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from brix_core.demo import DemoServer, Reply

TEST = """
    import openai
    from brix_core import BRIX

    def test_capital(brix_recording):
        client = BRIX.wrap(openai.OpenAI(api_key="x", base_url={url!r}), model="gpt-4o-mini", **brix_recording)
        assert client.complete_sync({prompt!r}) == {expected!r}
"""


def run(
    folder: Path, server: DemoServer, *options: str, prompt: str = "Capital?", expected: str = "Paris"
) -> tuple[int, str, int]:
    """Exit code, what was printed, and how many requests the server saw."""
    before = len(server.requests)
    script = "\n".join(line[4:] for line in TEST.splitlines())
    (folder / "test_it.py").write_text(script.format(url=server.base_url, prompt=prompt, expected=expected))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(folder),
            *options,
            str(folder),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=folder,
    )
    return done.returncode, done.stdout + done.stderr, len(server.requests) - before


def test_the_first_run_records_and_later_ones_replay(server: DemoServer, tmp_path: Path) -> None:
    server.script(Reply("Paris"))
    assert run(tmp_path, server)[::2] == (0, 1)
    assert [file.name for file in (tmp_path / "recordings").iterdir()] == ["test_it.py--test_capital.jsonl"]
    assert run(tmp_path, server)[::2] == (0, 0)
    assert run(tmp_path, server, "--brix-record=replay")[::2] == (0, 0)
    code, text, sent = run(tmp_path, server, prompt="Capitol?")
    assert (code, sent, "differs from character 5 on" in text) == (1, 0, True)
    server.script(Reply("Rome"))
    assert run(tmp_path, server, "--brix-record=record", prompt="Capitol?", expected="Rome")[::2] == (0, 1)
    assert run(tmp_path, server, prompt="Capitol?", expected="Rome")[::2] == (0, 0)


def test_what_a_failed_test_recorded_is_not_kept(server: DemoServer, tmp_path: Path) -> None:
    server.script(Reply("London"))
    assert run(tmp_path, server)[::2] == (1, 1)
    assert not list((tmp_path / "recordings").iterdir())


def test_without_a_recording_nothing_is_replayed(server: DemoServer, tmp_path: Path) -> None:
    code, text, sent = run(tmp_path, server, "--brix-record=replay")
    assert (code, sent, "there is no recording" in text) == (1, 0, True)
