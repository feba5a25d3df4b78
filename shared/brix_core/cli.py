"""The command ``brix``. Each command imports what it needs when it is run."""

from __future__ import annotations

from typing import Annotated

import typer

import brix_core

app = typer.Typer(
    name="brix",
    help="Guards around LLM calls.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Guards around LLM calls."""


@app.command()
def version() -> None:
    """Show the version."""
    typer.echo(f"brix-guards {brix_core.__version__}")


@app.command()
def demo(
    scenario: Annotated[
        list[str] | None, typer.Option("--scenario", "-s", help="Only this one; may be repeated.")
    ] = None,
    through: Annotated[
        list[str] | None,
        typer.Option("--through", help="Only through this framework (langchain, llamaindex); may be repeated."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the scenarios.")] = False,
    live: Annotated[
        bool,
        typer.Option(
            "--live", help="Ask the provider at OPENAI_BASE_URL, with OPENAI_API_KEY. May cost money, very little."
        ),
    ] = False,
    model: Annotated[
        str | None, typer.Option("--model", help="With --live: the model to ask. [default: gpt-4o-mini]")
    ] = None,
    color: Annotated[bool, typer.Option("--color/--no-color", help="NO_COLOR is respected too.")] = True,
) -> None:
    """See the guards at work, on a local server that fails on demand. No key is needed.

    Ends with exit code 1 when a figure is not what the guards claim.
    """
    try:
        from brix_core.demo.command import Wish, run
    except ImportError as error:
        hint = "" if "brix-guards[demo]" in str(error) else ': pip install "brix-guards[demo]"'
        typer.echo(f"error: {error}{hint}", err=True)
        raise typer.Exit(1) from None
    wish = Wish(
        scenarios=tuple(scenario or ()),
        through=tuple(through or ()),
        listing=list_,
        live=live,
        model=model,
        color=color,
    )
    raise typer.Exit(run(wish))


__all__ = ["app"]


if __name__ == "__main__":
    app()
