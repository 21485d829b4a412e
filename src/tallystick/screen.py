"""A reply as it comes, with a line under it that changes. Knows a console, and nothing of jobs and money.

On a terminal the line under the text is drawn anew with each token. In a pipe nothing is drawn twice: the
text comes line by line, and the line under it only where somebody asks for it.
"""

from __future__ import annotations

from rich.cells import cell_len, chop_cells
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}

WIDTH = 100
"""Columns that text is broken at, if the console has as many."""


def console(*, stderr: bool = False) -> Console:
    """One that prints what it is given: no markup, nothing coloured by guess, no line cut."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)


class Screen:
    """Text with a line under it. `with` it: at the end the text stays and the line goes.

    `wrap`: break text at words, in a pipe too; on a terminal it always is, since the line is under it.
    """

    def __init__(self, out: Console, *, wrap: bool = True) -> None:
        self._out = out
        self._lively = out.is_terminal and not out.is_dumb_terminal
        self._width = min(out.width, WIDTH) if wrap or self._lively else None
        self._partial = ""
        self._line = ""
        self._live: Live | None = None

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self.pause()

    def text(self, text: str) -> None:
        """Adds to the text."""
        text = printable(text)
        if self._width is None:
            self._out.print(text, end="")
            self._partial = text[-1:] or self._partial
            return
        *whole, self._partial = wrapped(self._partial + text, self._width)
        for line in whole:
            self._print(line)
        self._draw()

    def line(self, line: str) -> None:
        """What the line under the text says now."""
        self._line = line
        self._draw()

    def note(self, note: str) -> None:
        """A line in the text's place; what comes after it begins a new one."""
        self.pause()
        self._print(note)

    def pause(self) -> None:
        """Ends the text's last line and takes the line under it away, until there is more."""
        if self._live is not None:
            self._live.update(Text(), refresh=True)
            self._live.stop()
            self._live = None
        if self._width is None:
            if self._partial not in ("", "\n"):
                self._out.print()
        elif self._partial:
            self._print(self._partial)
        self._partial = ""

    def _print(self, line: str) -> None:
        self._out.print(line)

    def _draw(self) -> None:
        if not self._lively:
            return
        if self._live is None:
            self._live = Live(console=self._out, auto_refresh=False, transient=True)
            self._live.start()
        under = Text(self._line, style="dim", no_wrap=True, overflow="ellipsis")
        self._live.update(Group(Text(self._partial), under), refresh=True)


def printable(text: str) -> str:
    """Without what could steer a terminal: it comes from a stranger's model."""
    return text.translate(_CONTROLS)


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns, broken at spaces where there are any; the last may still grow."""
    *whole, last = text.split("\n")
    lines = [line for each in whole for line in _broken(each, width)]
    return [*lines, *_broken(last, width)]


def _broken(text: str, width: int) -> list[str]:
    lines = []
    while cell_len(text) > width:
        fitting = chop_cells(text, width)[0]
        at = len(fitting) if text[len(fitting)] == " " else fitting.rfind(" ")
        if at <= 0:
            lines.append(fitting)
            text = text[len(fitting) :]
        else:
            lines.append(text[:at])
            text = text[at + 1 :]
    return [*lines, text]
