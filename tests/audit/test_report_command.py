"""`brix report` as a command: what it reads, what it writes, what it refuses."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from brix_core.audit.canonical import digest
from brix_core.audit.directory import Item, LogDirectory
from brix_core.cli import app
from brix_core.demo import DemoServer
from tests.audit.logs import KEY, write_log
from tests.audit.report_logs import calls_of, entry_of, figures_in, report_of, write_entries


def test_all_files_of_a_log_that_is_being_written(tmp_path: Path) -> None:
    log = LogDirectory(tmp_path / "log", None, 4_096, time.time)
    for number in range(300):
        chained = entry_of(number, session_id=f"s{number}", sequence=1, chain_hash=digest({"genesis": f"s{number}"}))
        log.append([Item("call", chained, "tests")], sync=False)
    assert len(list((tmp_path / "log").glob("brix_audit.*.jsonl"))) > 60
    page = tmp_path / "report.html"
    command = f"ulimit -n 48; {sys.executable} -m brix_core.cli report {tmp_path / 'log'} -o {page}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{page}: 300 calls, ")
    assert len(done.stdout.splitlines()) == 1  # nothing to warn of
    figures = figures_in(page)
    assert figures["reading"] == {"unreadable": 0, "torn_bytes": 0, "recovered": 0, "lost": 0}
    assert (figures["chain"]["ok"], figures["chain"]["closed"], figures["chain"]["entries"]) == (True, False, 300)
    assert page.stat().st_mode & 0o777 == 0o600


def test_the_page_holds_no_address_and_no_prompt(server: DemoServer, tmp_path: Path) -> None:
    calls_of(server, tmp_path / "log")
    report_of(tmp_path / "log", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "Capital of France" not in text
    assert "sk-proj" not in text
    shell = text[: text.index('<script type="application/json"')] + text[text.rindex("<script>") :]
    assert [word for word in ("https:", "http:", "//cdn", "@import", "url(") if word in shell] == [
        "http:"
    ]  # the namespace of SVG, which is a name
    assert shell.count("http:") == shell.count("http://www.w3.org/2000/svg") == 1
    assert "default-src &#x27;none&#x27;" in shell


def test_seals_are_checked_with_the_key(tmp_path: Path) -> None:
    write_log(tmp_path / "log", 3, log_key=KEY)
    (tmp_path / "key").write_bytes(KEY)
    report_of(tmp_path / "log", tmp_path / "report.html", "--key-file", str(tmp_path / "key"))
    chain = figures_in(tmp_path / "report.html")["chain"]
    assert chain["ok"]
    assert chain["sealed_by"]
    (tmp_path / "key").write_bytes(b"another secret, of 32 bytes too.")
    assert "the chain is broken" in report_of(
        tmp_path / "log", tmp_path / "report.html", "--key-file", str(tmp_path / "key")
    )


@pytest.mark.parametrize(
    ("folder", "output", "said"),
    [
        ("nowhere", "report.html", "there is no audit log in"),
        ("log", ".", "is a folder: name the page"),
        ("log", "log/brix_audit.jsonl", "must not replace"),
        ("log", "no/such/folder/report.html", "No such file or directory"),
    ],
)
def test_what_cannot_be_made_is_told(tmp_path: Path, folder: str, output: str, said: str) -> None:
    write_entries(tmp_path / "log", [entry_of(0)])
    before = (tmp_path / "log/brix_audit.jsonl").read_bytes()
    done = CliRunner().invoke(app, ["report", str(tmp_path / folder), "-o", str(tmp_path / output)])
    assert done.exit_code == 2
    assert said in done.output
    assert (tmp_path / "log/brix_audit.jsonl").read_bytes() == before
    assert [path for path in tmp_path.rglob("*") if "report" in path.name] == []
