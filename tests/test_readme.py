"""What the README and the guides show runs as it stands, against the local server; what they link to exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from brix_core.audit.log import close_logs
from brix_core.demo import DemoServer
from brix_core.options import ALIASES, option_names
from tests.support.reading import requests_of

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name != "benchmarks.md")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of LlamaIndex, when it makes an agent
async def test_every_example_of_the_readme_runs_in_order(server: DemoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await requests_of(ROOT / "README.md", server, monkeypatch) == [
        3,  # a chain, a batch of two
        1,  # a schema
        2,  # complete and stream
        2,  # two sessions
        2,  # an agent: a tool call, an answer
        2,  # an executor: likewise
        1,  # callbacks
        1,  # retrieval: one question answered, one refused
        1,  # parser, cache, limiter
        3,  # LlamaIndex: an answer, a schema, a query
        2,  # an agent
        1,  # a program
    ]
    assert server.stats.answered == server.stats.requests


REQUESTS = {
    "audit.md": [
        1,  # a call
        0,  # its replay
        1,  # recorded; replayed
        0,  # a test, defined
    ],
    "enforcement.md": [
        1,  # an extraction
        5,  # another, its repetition cached; a batch of four
        1,  # a stream
        2,  # a chain, a program
    ],
    "regulated.md": [
        1,  # one refused, one answered
        0,  # a mock's answer
        1,  # a spec of one's own
        0,  # an answer analysed
    ],
}


@pytest.mark.parametrize("guide", GUIDES)
async def test_every_example_of_the_guides_runs_in_order(
    server: DemoServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, guide: str
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        assert await requests_of(ROOT / "docs" / guide, server, monkeypatch) == REQUESTS[guide]
    finally:
        close_logs()


def test_every_linked_file_exists() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs" / guide for guide in GUIDES)):
        links = [link for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")) if "://" not in link]
        assert links
        assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_options_table_names_every_option() -> None:
    table = README[README.index("## Options") : README.index("## Installing")]
    named = set(re.findall(r"`(\w+)`", table))
    assert set(option_names()) - named == set()
    assert set(ALIASES) <= named
