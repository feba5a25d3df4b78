"""The demo server as fixtures: one for the session, reset for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from brix_core.demo import DemoServer


@pytest.fixture(scope="session")
def demo_server() -> Iterator[DemoServer]:
    with DemoServer() as running:
        yield running


@pytest.fixture
def server(demo_server: DemoServer) -> Iterator[DemoServer]:
    # Before as well: what an earlier test left in flight may have been booked since.
    demo_server.reset()
    yield demo_server
    demo_server.reset()
