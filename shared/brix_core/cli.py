"""The command ``brix``. Each command imports what it needs when it is run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
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


class Format(StrEnum):
    """How a result is printed."""

    text = "text"
    json = "json"


_SPEC = "A built-in name (medical, legal, finance, hr, general) or the path of a spec."


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


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="Folder of the audit log.")],
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="Holds the log's key: a secret, or Ed25519's public key in PEM.")
    ] = None,
    key_env: Annotated[
        str | None, typer.Option("--key-env", help="Environment variable that holds the log's key.")
    ] = None,
    expect: Annotated[
        str | None,
        typer.Option("--expect", help="An end that was told earlier, 17:9f86d0...: the log must go on from it."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check that an audit log is as it was written.

    Exit code 0: it is; 1: it was changed, or cut off; 2: there is none, or the key cannot be used.
    """
    from brix_core.audit.command import run

    text, code = run(path, key_file, key_env, as_json, expect)
    typer.echo(text, err=code == 2 and not as_json)
    raise typer.Exit(code)


@app.command()
def report(
    path: Annotated[Path, typer.Argument(help="Folder of the audit log.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page; replaced when it exists.")] = Path(
        "report.html"
    ),
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="Holds the log's key, to check its seals.")
    ] = None,
    key_env: Annotated[
        str | None, typer.Option("--key-env", help="Environment variable that holds the log's key.")
    ] = None,
) -> None:
    """Make a page of an audit log: spend, latency, decisions, every call. One file, for any browser, offline.

    The log may be written meanwhile, or broken: the page says so. Ends with exit code 2 when there is none.
    """
    from brix_core.report.command import run

    text, code = run(path, output, key_file, key_env)
    typer.echo(text, err=code != 0)
    raise typer.Exit(code)


@app.command()
def traces(
    path: Annotated[Path, typer.Argument(help="Folder of the audit log.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as calls end, until Ctrl-C.")] = False,
    session: Annotated[str | None, typer.Option("--session", help="Only calls of this session.")] = None,
    outcome: Annotated[
        str | None, typer.Option("--outcome", help="Only calls that ended so: ok, refused, failed, timed_out, ...")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=0, help="The newest so many. [default: 50; with --json all]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print entries as JSON, one a line.")] = False,
) -> None:
    """Show the calls of an audit log, one a line, the newest last, and sum them up."""
    from brix_core.report.terminal import Wish, run

    wish = Wish(path=path, session=session, outcome=outcome, limit=limit, follow=follow, as_json=as_json)
    raise typer.Exit(run(wish))


@app.command()
def lint(
    specs: Annotated[list[str] | None, typer.Argument(metavar="SPEC...", help=_SPEC)] = None,
    format_: Annotated[Format, typer.Option("--format", help="json for machines.")] = Format.text,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of the format, for editors.")] = False,
) -> None:
    """Find what is wrong with a spec, and what is doubtful.

    Ends with exit code 0 when it is clean, 1 with warnings, 2 when it cannot be used.
    """
    from brix_core.regulated.workshop.commands.linting import lint_command

    raise typer.Exit(lint_command(specs or (), as_json=format_ is Format.json, schema=schema))


@app.command("test")
def run_tests(
    spec: Annotated[str, typer.Argument(help=_SPEC)],
    suite: Annotated[
        Path | None, typer.Option("--suite", help="Run the cases of this file, not the spec's own.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help="mock, or openai:NAME with OPENAI_API_KEY and OPENAI_BASE_URL.")
    ] = "mock",
    embedder: Annotated[
        str | None,
        typer.Option("--embedder", help="For rules with examples: lexical, or a sentence-transformers model."),
    ] = None,
    format_: Annotated[Format, typer.Option("--format", help="json for machines.")] = Format.text,
) -> None:
    """Run the test cases of a spec.

    Ends with exit code 1 when one fails, 2 when they cannot be run.
    """
    from brix_core.regulated.workshop.commands.testing import run_tests_command

    as_json = format_ is Format.json
    raise typer.Exit(run_tests_command(spec, suite=suite, model=model, embedder=embedder, as_json=as_json))


@app.command()
def explain(
    spec: Annotated[str | None, typer.Argument(help=_SPEC)] = None,
    decision_id: Annotated[str | None, typer.Option("--decision-id", help="Explain this decision of a log.")] = None,
    log: Annotated[Path | None, typer.Option("--log", help="The log, JSONL, or the directory it is in.")] = None,
) -> None:
    """Say in plain language what a spec does, or why a decision was made."""
    from brix_core.regulated.workshop.commands.explaining import explain_command

    raise typer.Exit(explain_command(spec, decision_id=decision_id, log=log))


@app.command()
def calibrate(
    spec: Annotated[str, typer.Argument(help=_SPEC)],
    positive: Annotated[Path, typer.Option("--positive", help="Texts that should be caught, one a line.")],
    negative: Annotated[Path, typer.Option("--negative", help="Texts that should not, one a line.")],
    rate: Annotated[float, typer.Option("--rate", help="Share of the negatives that may be caught.")] = 0.01,
    embedder: Annotated[
        str | None,
        typer.Option("--embedder", help="lexical, minilm, or a sentence-transformers model; minilm if installed."),
    ] = None,
    rule: Annotated[
        list[str] | None, typer.Option("--rule", help="Only this rule; may be repeated. [default: all breakers]")
    ] = None,
    each: Annotated[bool, typer.Option("--each", help="A threshold for each rule, not one for all.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the spec with them here.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Write them into the spec itself.")] = False,
) -> None:
    """Find the thresholds of rules with examples, for a wanted false-positive rate, and show the curve."""
    from brix_core.regulated.workshop.commands.calibrating import calibrate_command

    code = calibrate_command(
        spec,
        positive=positive,
        negative=negative,
        rate=rate,
        embedder=embedder,
        rules=rule or (),
        each=each,
        output=output,
        write=write,
    )
    raise typer.Exit(code)


@app.command()
def generate(
    spec: Annotated[str, typer.Argument(help=_SPEC)],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here; else to stdout.")] = None,
    per_rule: Annotated[int, typer.Option("--per-rule", help="Patterns of a rule that cases are drafted from.")] = 3,
    force: Annotated[bool, typer.Option("--force", help="Replace the file when it exists.")] = False,
) -> None:
    """Draft test cases from the rules of a spec, evasive variants included; `brix test --suite` takes them."""
    from brix_core.regulated.workshop.commands.generating import generate_command

    raise typer.Exit(generate_command(spec, output=output, per_rule=per_rule, force=force))


__all__ = ["app"]


if __name__ == "__main__":
    app()
