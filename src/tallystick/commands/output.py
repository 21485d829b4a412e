"""What commands have in common: JSON for machines, lines for people, the log, an interrupt.

Results go to standard output, all else to standard error.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tallystick.types import Check


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]


def echo_json(content: Any) -> None:
    """Prints an answer for machines."""
    typer.echo(json.dumps(content, indent=2, default=str))


def echo_note(note: str) -> None:
    """Says something on the way, beside what the command prints."""
    typer.echo(note, err=True)


def keep_logs(*, level: str = "info", as_json: bool = False) -> None:
    """Sends the log to standard error: a line an event, `event key=value` or JSON. Level `critical`: off."""
    import logging

    import structlog

    def show(logger: Any, method: str, event: Any) -> Any:
        return render(logger, method, event)

    # Tracebacks are plain: with local variables in them, keys would be in the log.
    plain = structlog.dev.plain_traceback
    render: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), pad_event_to=0, exception_formatter=plain
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info] if as_json else []),
            show,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # Standard error as it is when a line is logged: whoever runs a command may put another in its place.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(stream=sys.stderr, level=max(logging.WARNING, getattr(logging, level.upper())))


def judge(checks: Sequence[Check], as_json: bool) -> NoReturn:
    """Prints checks, and ends with status 1 if one of them failed."""
    from dataclasses import asdict

    sound = all(check.passed for check in checks)
    if as_json:
        echo_json({"sound": sound, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            typer.echo(f"{'pass' if check.passed else 'FAIL'}  {check.name:<16}  {check.seen}")
            if check.mend:
                typer.echo(f"{'':22}  mend: {check.mend}")
    raise typer.Exit(0 if sound else 1)


def show(told: dict[str, Any], as_json: bool) -> None:
    """Prints a value a line; the parts of what has parts below it."""
    if as_json:
        echo_json(told)
        return
    for line in _lines(told):
        typer.echo(line)


def _lines(told: dict[str, Any], indent: str = "") -> Iterator[str]:
    """A value a line, the parts of a list one a line, what has parts itself indented."""
    from tallystick.mends import when

    for name, value in told.items():
        label = f"{indent}{name}:".ljust(26)
        if isinstance(value, list):
            yield from (f"{label}{_inline(part)}" for part in value)
        elif isinstance(value, dict) and any(isinstance(part, dict) for part in value.values()):
            yield f"{indent}{name}:"
            yield from _lines(value, indent + "  ")
        elif value is not None and name != "receipt":
            yield f"{label}{when(value) if name.endswith('_at') else _inline(value)}"


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name} {part}" for name, part in value.items())
    return str(value)


def interrupt() -> asyncio.Event:
    """Set from now on by Ctrl-C or SIGTERM."""
    import signal

    asked = asyncio.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(each, asked.set)
    return asked
