"""`brix report`, opened in a real browser."""

from __future__ import annotations

import math
import shutil
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from brix_core.demo import DemoServer
from tests.audit.report_logs import calls_of, entry_of, report_of, write_entries

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ROW = ".rows-in-sight .tr"
NONE = "\u2013"
HOSTILE = [
    "</script><script>document.title = 'taken'</script>",
    "<img src=x onerror=\"document.title = 'taken'\">",
    "\"'`${document.title = 'taken'}",
    "<!--<script>",
    "\u202egnisrever \u05e9\u05dc\u05d5\u05dd",
    "x" * 10_000,
    "\ud800\x00\x1b[31m\u2028",
]


class Written(NamedTuple):
    folder: Path
    entries: list[dict[str, Any]]
    requests: int


@pytest.fixture(scope="module")
def written(demo_server: DemoServer, tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("written")
    entries = calls_of(demo_server, folder)
    return Written(folder, entries, len(demo_server.requests))


@pytest.fixture(scope="module")
def browser(written: Written) -> Iterator[Browser]:
    """Started last: from then on this thread has a running event loop, in which no blocking call may be made."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page of a file; at the end, nothing else has been asked for, and nothing went wrong."""
    pages: list[Page] = []
    asked: list[str] = []
    wrong: list[str] = []

    def open_(path: Path, width: int = 1280, height: int = 900, scheme: Any = "light", **options: Any) -> Page:
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
        pages.append(page)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        assert set(asked) == {path.as_uri()}
        return page

    yield open_
    for page in pages:
        page.close()
    assert all(url.startswith("file:") for url in asked)
    assert len(asked) == len(pages)
    assert wrong == []


def figure(page: Page, name: str, attribute: str | None = None) -> str:
    found = page.locator(f"[data-figure='{name}']")
    return found.inner_text() if attribute is None else str(found.get_attribute(attribute))


def dollars(text: str) -> float:
    return float(text.removeprefix("$").replace(",", ""))


def counts(page: Page, section: str) -> dict[str, int]:
    """The rows of a small table: what is said, and how often."""
    rows = page.locator(f"#{section} .bars li")
    return {
        rows.nth(index).locator(".bar-label").inner_text(): int(rows.nth(index).locator(".bar-count").inner_text())
        for index in range(rows.count())
    }


def nearest_rank(values: list[float], percent: float) -> float:
    return sorted(values)[math.ceil(percent / 100 * len(values)) - 1]


def is_overflowing(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))


def colours(png: bytes) -> int:
    """Different bytes in an unfiltered row of a screenshot, taken over all of its rows."""
    place, data = 8, b""
    while place < len(png):
        size, kind = struct.unpack(">I4s", png[place : place + 8])
        data += png[place + 8 : place + 8 + size] if kind == b"IDAT" else b""
        place += size + 12
    return len(set(zlib.decompress(data)))


def test_the_figures_are_those_of_the_calls(written: Written, opened: Callable[..., Page], tmp_path: Path) -> None:
    report_of(written.folder, tmp_path / "report.html")
    page = opened(tmp_path / "report.html")
    entries = written.entries
    priced = [entry["cost_usd"] for entry in entries if entry["cost_usd"] is not None]
    attempts = [attempt for entry in entries for attempt in entry["attempts"]]
    ok = [entry["latency_ms"] for entry in entries if entry["outcome"] == "ok"]

    assert figure(page, "calls") == str(len(entries)) == "7"
    assert dollars(figure(page, "spend", "title")) == pytest.approx(sum(priced), abs=1e-12) != 0
    assert dollars(figure(page, "spend")) == pytest.approx(sum(priced), rel=0.005)
    assert "3 calls without a price" in page.locator("#tiles").inner_text()
    tokens = sum((entry["prompt_tokens"] or 0) + (entry["completion_tokens"] or 0) for entry in entries)
    assert figure(page, "tokens", "title") == str(tokens)
    assert float(figure(page, "latency", "title").removesuffix(" ms")) == pytest.approx(nearest_rank(ok, 50))
    cells = page.locator("#latency tbody tr").first.locator("td")
    found = [float(str(cells.nth(index).get_attribute("title")).removesuffix(" ms")) for index in (1, 2, 3)]
    assert found == pytest.approx([nearest_rank(ok, percent) for percent in (50, 90, 99)])
    assert cells.nth(0).inner_text() == str(len(ok)) == "4"
    assert figure(page, "refused") == "1"
    assert figure(page, "failed") == "2"
    assert figure(page, "attempts") == str(len(attempts)) == str(written.requests + 3)
    assert counts(page, "attempts") == {"first attempts": 6, "retries": 2, "failovers": 1, "follow-ups": 0}
    assert counts(page, "outcomes") == {"ok": 4, "failed": 2, "refused": 1}
    assert counts(page, "stops") == {"budget · refused": 1, "loop · given up": 1}
    assert sum(counts(page, "failures").values()) == sum(attempt["outcome"] != "ok" for attempt in attempts) == 4
    assert figure(page, "loops") == "1"
    assert counts(page, "loops") == {"stopped · response": 1}
    assert figure(page, "chain") == "Chain intact"
    # The page's own sums over the table are those of the log's reader.
    assert figure(page, "shown") == "7 calls"
    assert figure(page, "shown-spend", "title") == figure(page, "spend", "title")
    sessions = page.locator("#sessions tbody tr")
    spent = {sessions.nth(row).locator("th").inner_text(): sessions.nth(row).locator("td").nth(3).get_attribute("title")
             for row in range(sessions.count())}  # fmt: skip
    assert spent == {
        name: f"${sum(entry['cost_usd'] or 0 for entry in entries if entry['session_id'] == name):.9f}"
        for name in ("bob", "alice", "carol")
    }


def test_decisions_and_spend_over_time(written: Written, opened: Callable[..., Page], tmp_path: Path) -> None:
    report_of(written.folder, tmp_path / "report.html")
    page = opened(tmp_path / "report.html")
    page.get_by_text("Show as a table").nth(1).click()
    rows = page.locator("#decisions .as-table tbody tr")
    shown = {tuple(rows.nth(row).locator("th, td").all_inner_texts()) for row in range(rows.count())}
    decided: dict[tuple[str, str], int] = {}
    for entry in written.entries:
        for made in entry["decisions"]:
            key = made["guard"], made["decision"]
            decided[key] = decided.get(key, 0) + 1
    expected = {(*key, str(count)) for key, count in decided.items()}
    assert shown == expected | {("budget", "refused the call", "1"), ("loop", "gave the call up", "1")}
    assert ("retry", "waiting", "2") in shown
    assert ("failover", "moved_on", "1") in shown
    legend = dict(text.split("\n") for text in page.locator("#spend .legend button").all_inner_texts())
    assert list(legend) == ["bob", "alice", "carol"] or list(legend) == ["alice", "bob", "carol"]
    assert legend["carol"] == "$0"
    page.get_by_role("button", name="Calls", exact=True).click()
    legend = dict(text.split("\n") for text in page.locator("#spend .legend button").all_inner_texts())
    assert legend == {"alice": "2", "bob": "2", "carol": "3"}
    # By the keyboard: the first step of the drawing, then its calls.
    page.locator("#spend .drawing").focus()
    page.keyboard.press("ArrowRight")
    assert "UTC" in page.locator("#spend .tip").inner_text()
    page.keyboard.press("Enter")
    assert "UTC" in page.locator("#chips").inner_text()
    assert 1 <= page.locator(ROW).count() <= 7


def test_calls_are_searched_filtered_sorted_and_opened(
    written: Written, opened: Callable[..., Page], tmp_path: Path
) -> None:
    report_of(written.folder, tmp_path / "report.html")
    page = opened(tmp_path / "report.html")
    rows = page.locator(ROW)
    assert rows.count() == 7
    search = page.get_by_label("Search", exact=True)
    search.fill("alice BUDGET")
    expect(page.locator(ROW)).to_have_count(2)
    search.fill("carol failed")
    expect(page.locator("#shown")).to_contain_text("2 of 7 calls")
    (run_id,) = (entry["run_id"] for entry in written.entries if len(entry["attempts"]) == 3)
    search.fill(run_id)
    expect(page.locator(ROW)).to_have_count(1)
    assert "bob" in rows.first.inner_text()
    search.fill("nowhere to be found")
    page.wait_for_selector("text=No call is like that")
    search.fill("")
    expect(page.locator(ROW)).to_have_count(7)
    page.get_by_label("Outcome", exact=True).select_option(label="refused")
    assert rows.count() == 1
    page.locator("#chips button").click()
    assert rows.count() == 7
    page.get_by_label("Decision", exact=True).select_option(label="\u2068retry waiting\u2069")
    assert rows.count() == 2
    page.locator("#chips button").click()

    page.get_by_role("button", name="Cost").click()
    costs = [dollars(text) for text in page.locator(".c-nano").all_inner_texts() if text != NONE]
    assert costs == sorted(costs, reverse=True)
    assert page.locator(".c-nano").all_inner_texts()[-1] == NONE
    page.get_by_role("button", name="Cost").click()
    assert page.locator("[aria-sort='ascending']").inner_text().startswith("Cost")
    costs = [dollars(text) for text in page.locator(".c-nano").all_inner_texts() if text != NONE]
    assert costs == sorted(costs)

    (entry,) = (entry for entry in written.entries if entry["run_id"] == run_id)
    page.get_by_role("button", name="Tries").click()
    page.locator(".table").focus()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    dialog = page.locator("dialog[open]")
    text = dialog.inner_text()
    assert dialog.locator(".attempt").count() == 3
    for shown in (run_id, entry["prompt_hash"], entry["response_hash"], entry["chain_hash"], "InternalServerError",
                  "HTTP 500", "1. first", "2. retry", "3. failover", "moved_on", "brix_audit.jsonl:"):  # fmt: skip
        assert shown in text
    page.keyboard.press("Escape")
    assert dialog.count() == 0


@pytest.mark.parametrize(("width", "height", "scheme"), [(1280, 900, "light"), (800, 900, "dark"), (360, 740, "dark")])
def test_it_fits_every_screen(
    written: Written, opened: Callable[..., Page], tmp_path: Path, width: int, height: int, scheme: str
) -> None:
    report_of(written.folder, tmp_path / "report.html")
    page = opened(tmp_path / "report.html", width, height, scheme)
    assert not is_overflowing(page)
    png = page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert colours(png) > 100
    ground = "getComputedStyle(document.body).backgroundColor"
    light = "rgb(244, 245, 247)"
    assert (page.evaluate(ground) == light) == (scheme == "light")
    page.locator("#theme").click(click_count=1)  # light, whatever the system has
    assert page.evaluate(ground) == light
    page.locator("#theme").click()
    assert page.evaluate(ground) == "rgb(15, 18, 22)"
    page.locator(ROW).first.click()
    assert page.locator("dialog[open]").count() == 1
    assert not is_overflowing(page)
    assert colours(page.screenshot()) > 60
    unnamed = "[...document.querySelectorAll('button, select, input')].filter((one) => one.offsetParent && " \
              "!(one.innerText || one.ariaLabel || one.labels?.length)).length"  # fmt: skip
    assert page.evaluate(unnamed) == 0


def test_whatever_a_log_holds_is_only_text(opened: Callable[..., Page], tmp_path: Path) -> None:
    entries = [
        entry_of(
            number, model=text, session_id=text, outcome="failed", error=text, error_message=text, stopped_by=text,
            partial_text=text, run_id=text, decisions=[{"guard": text, "decision": text, text: [text]}],
            attempts=[{"endpoint": text, "model": text, "outcome": text, "error": text, "cost_usd": text}],
        )
        for number, text in enumerate(HOSTILE)
    ]  # fmt: skip
    for odd in (None, 7, [], {"a": [1]}, True, -1, 1e300, "?"):
        entries.append({"session_id": "odd", **dict.fromkeys(entry_of(0).keys() - {"session_id"}, odd)})
    write_entries(tmp_path / "log", entries)
    report_of(tmp_path / "log", tmp_path / "report.html")
    page = opened(tmp_path / "report.html", 360, 740)
    assert page.title() == "BRIX report"
    assert not is_overflowing(page)
    assert figure(page, "calls") == str(len(entries))
    assert page.locator("img").count() == 0
    assert page.evaluate("/[\\u202a-\\u202e\\u0000-\\u0008]/.test(document.body.innerText)") is False
    assert "</script><script>document" in page.locator("#table").inner_text()
    page.locator("#search").fill("x" * 300)
    expect(page.locator(ROW)).to_have_count(1)
    page.locator(ROW).click()
    assert "(10000 characters)" in page.locator("dialog[open]").inner_text()
    assert page.evaluate("(one => one.scrollWidth <= one.clientWidth)(document.querySelector('dialog'))")
    assert not is_overflowing(page)


@pytest.mark.parametrize("calls", [0, 1])
def test_a_log_with_next_to_nothing_in_it(opened: Callable[..., Page], tmp_path: Path, calls: int) -> None:
    refused = entry_of(0, outcome="refused", cost_usd=None, attempts=[], prompt_tokens=None, completion_tokens=None)
    write_entries(tmp_path / "log", [refused][:calls])
    report_of(tmp_path / "log", tmp_path / "report.html")
    page = opened(tmp_path / "report.html", 360, 740)
    text = page.inner_text("body")
    assert figure(page, "calls") == str(calls)
    assert figure(page, "spend") == "$0"
    assert "NaN" not in text
    assert "undefined" not in text
    assert "No provider was asked." in text
    assert "No loop was found." in text
    assert ("The log holds no call yet." in text) == (calls == 0)
    assert page.locator("#spend .legend b").all_inner_texts() == ["1"] * calls


def test_torn_and_broken_logs_are_reported_nevertheless(opened: Callable[..., Page], tmp_path: Path) -> None:
    write_entries(tmp_path / "log", [entry_of(number) for number in range(20)])
    log = tmp_path / "log" / "brix_audit.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    lines[5] = lines[5].replace(b'"gpt"', b'"gpt-9"')
    lines[9] = b"{no line}\n"
    log.write_bytes(b"".join(lines) + b'{"run_id":"torn')
    said = report_of(tmp_path / "log", tmp_path / "report.html")
    assert "20 calls" not in said
    assert "chain is broken: brix_audit.jsonl:6: changed after it was written" in said
    page = opened(tmp_path / "report.html")
    assert figure(page, "calls") == "19"
    assert figure(page, "chain") == "Chain broken"
    state = page.locator("#chain")
    assert "brix_audit.jsonl:6: changed after it was written" in state.inner_text()
    state.locator("summary").click()
    assert "1 line could not be read" in state.inner_text()
    assert "the last line is not whole" in state.inner_text()


def test_a_hundred_thousand_calls(opened: Callable[..., Page], tmp_path: Path) -> None:
    count = 100_000
    write_entries(tmp_path / "log", (entry_of(number) for number in range(count)))
    started = time.process_time()
    report_of(tmp_path / "log", tmp_path / "report.html")
    making = time.process_time() - started
    page = opened(tmp_path / "report.html")
    opening = page.evaluate("Number(document.documentElement.dataset.ready)")
    print(f"made in {making:.1f} s of CPU, open in {opening / 1_000:.2f} s")
    assert opening < 5_000
    assert figure(page, "calls") == "100,000"
    assert dollars(figure(page, "spend", "title")) == pytest.approx(count * 2e-6, abs=1e-12)
    assert figure(page, "shown-tokens") == "1,000,000 tokens"
    rows = page.locator(ROW)
    assert rows.count() < 60
    page.locator(".table").focus()
    page.keyboard.press("End")
    page.wait_for_selector(f"[aria-rowindex='{count + 1}']")
    page.keyboard.press("Enter")
    assert f"{0:064x}" in page.locator("dialog[open]").inner_text()  # the newest is first, so the oldest is last
    page.keyboard.press("Escape")
    page.locator("#search").fill(f"{77_777:08x}")
    expect(page.locator(ROW)).to_have_count(1)
