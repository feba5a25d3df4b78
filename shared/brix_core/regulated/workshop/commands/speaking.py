"""How the commands speak: lines to the terminal, errors to stderr, JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import typer

from brix_core.errors import BrixError
from brix_core.regulated.workshop.decisions import plain

UNUSABLE: Final = 2
INTERRUPTED: Final = 130


def say(text: str = "") -> None:
    """A line on stdout."""
    typer.echo(text)


def say_json(value: Any) -> None:
    """A value on stdout, as JSON that any terminal can print."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=True))


def complain(text: str) -> None:
    """Lines on stderr, without anything that would act on a terminal."""
    typer.echo("\n".join(plain(line) for line in text.split("\n")), err=True)


def run(command: Callable[[], int]) -> int:
    """The exit code of a command: its own, 2 when it could not do its work, 130 after Ctrl-C."""
    try:
        return command()
    except BrixError as error:
        complain(f"error: {error}")
        return UNUSABLE
    except KeyboardInterrupt:
        complain("stopped")
        return INTERRUPTED


__all__ = ["INTERRUPTED", "UNUSABLE", "complain", "run", "say", "say_json"]
