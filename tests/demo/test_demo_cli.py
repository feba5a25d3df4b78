"""`brix demo` as its users see it: what it claims is what the server counted, and it never ends in a traceback."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import brix_core
from brix_core.cli import app
from brix_core.demo import BadRequest, DemoServer
from brix_core.demo import command as command_module
from brix_core.demo.render import Screen, console
from brix_core.demo.scene import Case, Check, Scenario
from brix_core.demo.show import load_surfaces, programme, show
from brix_core.demo.stage import Stage

SURFACES = load_surfaces(())
NAMES = [scenario.name for scenario in programme(SURFACES, live=False)]
KEY = "sk-never-to-be-shown"
MEASURED = re.compile(r"(\d+) requests?, ([\d,]+) \+ ([\d,]+) tokens")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.fixture
def provider() -> Iterator[DemoServer]:
    """Stands for a real provider."""
    with DemoServer() as running:
        yield running


def brix(*arguments: str, env: dict[str, str] | None = None) -> Any:
    result = CliRunner().invoke(app, arguments, env=env)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    assert "Traceback" not in result.output
    return result


def one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("name", NAMES)
async def test_what_a_scenario_claims_is_what_the_server_counted(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []
    run = Stage.run

    async def counting(stage: Stage, *args: Any, **kwargs: Any) -> Any:
        side = await run(stage, *args, **kwargs)
        assert stage.server is not None
        # Asked again, and by its records: not the figures that the scenario was given.
        assert len(stage.server.requests) == side.sent
        if side.guarded:
            assert sum(len(trace["attempts"]) for trace in side.traces) == len(stage.server.requests)
            seen.append(len(stage.server.requests))
        return side

    monkeypatch.setattr(Stage, "run", counting)
    playing = [scenario for scenario in programme(SURFACES, live=False) if scenario.name == name]
    outcome = await show(Screen(console()), playing, list(SURFACES.values()))

    tallies = [tally for session in outcome.sessions.values() for tally in session.values()]
    assert outcome.failures == []
    assert sum(tally.counted for tally in tallies) == sum(seen) > 0
    assert all(tally.agrees for tally in tallies)
    assert f"the server saw {sum(seen)} requests" in capsys.readouterr().out


def test_a_run_without_a_terminal(tmp_path: Path) -> None:
    environment = {**os.environ, "OPENAI_API_KEY": KEY, "PYTHONWARNINGS": "default"}
    del environment["NO_COLOR"]
    arguments = ["demo", "--scenario", "failover", "--scenario", "sessions", "--no-color"]
    done = subprocess.run(
        [sys.executable, "-m", "brix_core.cli", *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert KEY not in done.stdout
    assert "1/2 failover" in done.stdout
    assert "2/2 sessions" in done.stdout
    failover = MEASURED.findall(done.stdout.partition("2/2 sessions")[0])
    assert sorted(failover) == sorted([("2", "20", "5"), ("1", "0", "0")] * 2)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_it_without_a_traceback(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "brix_core.cli", "demo", "-s", "circuit-breaker", "--through", "langchain"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    assert any("1/1 circuit-breaker" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)

    assert process.returncode == 130
    assert errors.strip() == "stopped"


def test_nothing_but_loopback_is_contacted(monkeypatch: pytest.MonkeyPatch) -> None:
    contacted: set[Any] = set()
    connect = socket.socket.connect

    def noting(self: socket.socket, address: Any) -> None:
        contacted.add(address[0])
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", noting)
    # What would lead elsewhere, were it heeded.
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "OPENAI_PROXY", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "http://192.0.2.1:9")
    for name in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2"):
        monkeypatch.setenv(name, "true")
    result = brix("demo", "-s", "hello")

    assert result.exit_code == 0, result.output
    assert contacted <= {"127.0.0.1"}


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (("--scenario", "bugdet"), "Did you mean budget?"),
        (("--scenario", "zzz"), "Known are: hello, budget,"),
        (("--through", "langchian"), "Did you mean langchain?"),
        (("--nonsense",), "No such option"),
    ],
)
def test_a_name_that_does_not_exist_ends_with_2(arguments: tuple[str, ...], suggestion: str) -> None:
    result = brix("demo", *arguments)

    assert result.exit_code == 2
    assert suggestion in one_line(result.stderr)


def test_scenarios_are_listed() -> None:
    result = brix("demo", "--list")

    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines() if line[:1].strip()][1:] == NAMES


@pytest.mark.parametrize("arguments", [("--version",), ("version",)])
def test_the_version_is_shown(arguments: tuple[str, ...]) -> None:
    assert brix(*arguments).stdout.strip() == f"brix-guards {brix_core.__version__}"


def test_one_framework_can_be_chosen() -> None:
    result = brix("demo", "-s", "failover", "--through", "llamaindex")

    assert result.exit_code == 0
    assert "LlamaIndex" in result.stdout
    assert "LangChain" not in result.stdout


def test_a_claim_that_does_not_hold_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(stage: Stage) -> Sequence[Case]:
        async def work(app: Any) -> None:
            await app.ask("Hello")

        side = await stage.run(stage.guarded(), work)
        return [Case(guarded=side, did="", checks=(Check("pigs fly", False),))]

    scenario = Scenario(name="pigs", title="", options="", story="", play=play, rank=0)
    monkeypatch.setattr(command_module, "programme", lambda surfaces, live: [scenario])
    result = brix("demo")

    assert result.exit_code == 1
    assert "pigs, LangChain: pigs fly" in result.stdout


def test_a_count_that_differs_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Stage.run

    async def miscounting(stage: Stage, *args: Any, **kwargs: Any) -> Any:
        side = await run(stage, *args, **kwargs)
        return replace(side, traces=side.traces[1:])

    monkeypatch.setattr(Stage, "run", miscounting)
    result = brix("demo", "-s", "failover", "--through", "langchain")

    assert result.exit_code == 1
    assert "failover, LangChain: server and guards count alike" in result.stdout


def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "brix_langchain.demo")
    monkeypatch.setitem(sys.modules, "langchain_openai", None)
    result = brix("demo")

    assert result.exit_code == 1
    assert "langchain_openai" in result.stderr
    assert 'pip install "brix-guards[demo]"' in one_line(result.stderr)


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({}, "OPENAI_API_KEY and OPENAI_BASE_URL"),
        ({"OPENAI_API_KEY": KEY}, "needs OPENAI_BASE_URL"),
        ({"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}, "needs OPENAI_API_KEY"),
    ],
)
def test_live_without_its_environment_says_what_is_missing(given: dict[str, str], missing: str) -> None:
    result = brix("demo", "--live", env=given)

    assert result.exit_code == 1
    assert missing in one_line(result.stderr)
    assert KEY not in result.output


def test_live_asks_the_endpoint_that_is_named(provider: DemoServer) -> None:
    result = brix("demo", "--live", env={"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": provider.base_url})

    assert result.exit_code == 0, result.output
    assert "These are real requests" in one_line(result.stdout)
    assert {record.model for record in provider.requests} == {"gpt-4o-mini"}
    assert KEY not in result.output


def test_live_the_key_is_not_shown_when_the_provider_quotes_it(provider: DemoServer) -> None:
    provider.default = BadRequest(f"Incorrect API key provided: {KEY}", status=401)
    environment = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": provider.base_url}
    result = brix("demo", "--live", "-s", "hello", "-s", "budget", "--model", "nobodys-model", env=environment)

    assert result.exit_code == 1
    assert "Incorrect API key provided: ***" in one_line(result.stdout)
    assert "no price is known for nobodys-model" in one_line(result.stdout)
    assert KEY not in result.output
