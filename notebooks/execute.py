"""Run notebooks top to bottom, and keep what their cells print and draw.

``python -m notebooks.execute`` rewrites the outputs of all of them. The tests run them too, and compare.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import nbformat
from nbclient import NotebookClient

NOTEBOOKS: Final = tuple(sorted(Path(__file__).parent.glob("*.ipynb")))

TIMEOUT: Final = 60
"""Seconds a cell may take."""

_NOWHERE: Final = "http://127.0.0.1:9"
"""A proxy that is not there: what goes anywhere but to this machine goes nowhere."""

_SETTINGS: Final = ("ANTHROPIC_", "LANGCHAIN_", "LANGGRAPH_", "LANGSMITH_", "OPENAI_")
"""What a reader may have set, and a notebook must do without."""


async def execute(paths: Sequence[Path]) -> list[Any]:
    """Run notebooks at the same time, each in a process of its own, without keys and without a network.

    Args:
        paths: The notebooks.

    Returns:
        The notebooks with their new outputs, in order.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell raised; the message shows which, and the traceback.
    """
    return await asyncio.gather(*(_execute(path) for path in paths))


async def _execute(path: Path) -> Any:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        kernel_name="python3",
        extra_arguments=["--Application.log_level=ERROR"],
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    await client.async_execute(env=_without_network(os.environ))
    notebook.metadata.language_info = {"name": "python"}  # not whose version ran it
    return notebook


def _without_network(environment: Mapping[str, str]) -> dict[str, str]:
    proxies = {"http_proxy": _NOWHERE, "https_proxy": _NOWHERE, "all_proxy": _NOWHERE, "no_proxy": "127.0.0.1"}
    kept = {name: value for name, value in environment.items() if not name.startswith((*_SETTINGS, "MPL"))}
    return kept | proxies | {name.upper(): value for name, value in proxies.items()}


def main(paths: Sequence[Path]) -> None:
    """Rewrite notebooks with their new outputs."""
    for path, notebook in zip(paths, asyncio.run(execute(paths)), strict=True):
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]] or NOTEBOOKS)
