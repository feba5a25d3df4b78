import gc

import pytest

from tests.support.servers import demo_server, server


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is there by now stays to the end: a full collection, which some tests ask for, need not visit it."""
    gc.collect()
    gc.freeze()


__all__ = ["demo_server", "pytest_collection_finish", "server"]
