"""The notebooks run top to bottom without a key or a network, and show what comes out."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from notebooks.execute import NOTEBOOKS, execute

KILOBYTES = 200
NAMES = [path.stem for path in NOTEBOOKS]


def kept(name: str) -> Any:
    """A notebook as it is in the repository."""
    return nbformat.read(next(path for path in NOTEBOOKS if path.stem == name), as_version=4)


def shown(notebook: Any) -> Iterator[tuple[str, str, int]]:
    """What each cell of code shows: its id, its text, and how many pictures."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            text = "".join(output.text for output in cell.outputs if output.output_type == "stream")
            pictures = sum("image/png" in output.get("data", {}) for output in cell.outputs)
            yield cell.id, text, pictures


@pytest.fixture(scope="module")
def runs() -> dict[str, Any]:
    """Every notebook, run just now. A cell that raises, such as by an assertion, fails all tests that ask for it."""
    return dict(zip(NAMES, asyncio.run(execute(NOTEBOOKS)), strict=True))


def test_there_is_one_for_each_framework() -> None:
    assert NAMES == ["langchain", "llamaindex"]


@pytest.mark.parametrize("name", NAMES)
def test_running_it_gives_what_the_repository_shows(name: str, runs: dict[str, Any]) -> None:
    assert list(shown(runs[name])) == list(shown(kept(name))), "if that is right: python -m notebooks.execute"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_warns(name: str, runs: dict[str, Any]) -> None:
    streams = [output for cell in runs[name].cells for output in cell.get("outputs", ()) if "name" in output]
    assert [output.text for output in streams if output.name == "stderr"] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_section_compares_the_guards_count_with_the_servers(name: str) -> None:
    sections: dict[str, bool] = {}
    for cell in kept(name).cells:
        if cell.cell_type == "markdown" and (title := re.match(r"## (.+)", cell.source)):
            sections[title[1]] = False
        elif sections and re.search(r"^assert .*\bsent\(", cell.source, re.MULTILINE):
            sections[list(sections)[-1]] = True
    assert len(sections) >= 5
    assert [title for title, compares in sections.items() if not compares] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_what_is_kept_is_small_and_names_no_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text) < KILOBYTES * 1024
    cells = json.loads(text)["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    printed = json.dumps([output for output in outputs if "image/png" not in output.get("data", {})])
    assert re.findall(r"(?:/home|/root|/tmp|/work|/Users|site-packages|127\.0\.0\.1)[^\s\"]*", printed) == []
    assert [cell["metadata"] for cell in cells if cell["metadata"]] == []  # such as when it ran


def test_a_cell_that_fails_is_an_error_and_no_key_reaches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-a-reader")
    cells = [
        "import os; assert 'OPENAI_API_KEY' not in os.environ",
        "import httpx\ntry:\n    httpx.get('http://example.com')\nexcept httpx.ConnectError:\n    print('offline')",
        "assert 1 == 2, 'the guards counted one, the server two'",
    ]
    path = tmp_path / "wrong.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells]), path)
    with pytest.raises(CellExecutionError, match="the guards counted one, the server two"):
        asyncio.run(execute([path]))
