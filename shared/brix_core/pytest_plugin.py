"""The pytest fixture `brix_recording`: a test of an agent or a chain that needs no model after its first run.

::

    def test_the_agent_finds_the_weather(brix_recording):
        model = guard(ChatOpenAI(model="gpt-4o-mini"), **brix_recording)
        assert "sunny" in ask(create_agent(model, tools=[get_weather]), "Weather in Oslo?")

The first run asks the model and records what it answers, in ``recordings/`` beside the test; later ones replay that,
offline and at no cost, and fail with the first difference when a prompt is another. The mode is ``--brix-record``, or
the environment variable ``BRIX_RECORD``:

* ``once`` (the default): replay where there is a recording, else record;
* ``replay``: never ask a model; a test without a recording fails;
* ``record``: record anew.

A recording is kept only when the test passes.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

MODES: Final = ("once", "replay", "record")

MAX_NAME: Final = 120
"""Characters of a test's name in that of its recording; the name of a longer one ends with its hash."""

_REPORTS: Final = pytest.StashKey[dict[str, pytest.TestReport]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--brix-record``."""
    group = parser.getgroup("brix")
    group.addoption(
        "--brix-record",
        choices=MODES,
        default=None,
        help="what brix_recording does: once (replay where there is a recording, else record), replay, or record anew",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the fixture know how its test ended."""
    report = yield
    item.stash.setdefault(_REPORTS, {})[report.when] = report
    return report


@pytest.fixture
def brix_recording(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Options for ``guard`` or ``BRIX.wrap``: record this test's calls, or replay them. See the plugin's module."""
    mode = _mode(request.config)
    path = _recording_of(request.node)
    if mode == "replay" or (mode == "once" and path.exists()):
        if not path.exists():
            pytest.fail(f"there is no recording {path}; run the test once with --brix-record=once", pytrace=False)
        yield {"replay": path}
        return
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    yield {"record": new}
    report = request.node.stash.get(_REPORTS, {}).get("call")
    if new.exists():
        if report is not None and report.passed:
            new.replace(path)
        else:
            new.unlink()


def _mode(config: pytest.Config) -> str:
    mode = config.getoption("--brix-record") or os.environ.get("BRIX_RECORD") or "once"
    if mode not in MODES:
        raise pytest.UsageError(f"BRIX_RECORD must be one of {', '.join(MODES)}, got {mode!r}")
    return str(mode)


def _recording_of(node: Any) -> Path:
    """Beside the test's file, named after both."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", str(node.nodeid).rpartition("/")[2].replace("::", "--"))
    if len(name) > MAX_NAME or name != str(node.nodeid).rpartition("/")[2].replace("::", "--"):
        name = f"{name[:MAX_NAME]}-{hashlib.sha256(node.nodeid.encode()).hexdigest()[:8]}"
    return Path(node.path).parent / "recordings" / f"{name}.jsonl"


__all__ = ["MODES", "brix_recording", "pytest_addoption", "pytest_runtest_makereport"]
