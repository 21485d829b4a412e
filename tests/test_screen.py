"""Text with a line under it: whole in a pipe, drawn anew on a terminal, and no way to steer either."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from tallystick.screen import Screen, printable, wrapped


def test_words_are_kept_whole_and_nothing_is_lost() -> None:
    """Lines break at spaces; every word is there, in order."""
    text = "A tally stick was split in two so that each held half, and neither could alter the count alone."
    lines = wrapped(text, 20)
    assert " ".join(lines) == text
    assert all(len(line) <= 20 for line in lines)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", [""]),
        ("one\ntwo", ["one", "two"]),
        ("one\n", ["one", ""]),
        ("ends with a space ", ["ends with", "a space "]),
        ("abcdefghijklmnop", ["abcdefghij", "klmnop"]),
        (" abcdefghijk", [" abcdefghi", "jk"]),
        ("the tally sticks", ["the tally", "sticks"]),
    ],
)
def test_where_lines_break(text: str, lines: list[str]) -> None:
    """At line ends, at the last space that fits, or within a word that is longer than a line."""
    assert wrapped(text, 10) == lines


def test_wide_characters_count_twice() -> None:
    """A line is as wide as it looks, not as many characters as it has."""
    assert all(cell_len(line) <= 10 for line in wrapped("潮の満ち引きを数える", 10))


def test_in_a_pipe_text_comes_as_lines_and_the_live_line_not_at_all() -> None:
    """Nothing is drawn twice, so that the output can be kept."""
    out = io.StringIO()
    with Screen(Console(file=out, width=20, soft_wrap=True)) as screen:
        for word in ("A ", "tally ", "stick ", "was ", "split"):
            screen.text(word)
            screen.line("2 tokens")
        screen.note("-- noted")
        screen.text("again")
    assert out.getvalue() == "A tally stick was\nsplit\n-- noted\nagain\n"


def test_unwrapped_text_in_a_pipe_is_as_it_came() -> None:
    """What a model wrote can be piped on, with one line end at its end."""
    out = io.StringIO()
    with Screen(Console(file=out, width=20, soft_wrap=True), wrap=False) as screen:
        for part in ("A tally stick was split ", "in two.", "\n\n", "So it was."):
            screen.text(part)
    assert out.getvalue() == "A tally stick was split in two.\n\nSo it was.\n"


def test_on_a_terminal_the_line_is_under_the_text_and_goes_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The live line is seen while text comes, and the text alone stays."""
    monkeypatch.setenv("TERM", "xterm")
    out = io.StringIO()
    console = Console(file=out, width=40, force_terminal=True, color_system=None, legacy_windows=False)
    with Screen(console) as screen:
        screen.text("half a ")
        screen.line("7 tokens")
        assert "7 tokens" in out.getvalue()
        screen.text("line")
    assert out.getvalue().rstrip().splitlines()[-1].endswith("half a line")


def test_a_model_cannot_steer_the_terminal() -> None:
    """Escape sequences and other controls are dropped; letters, line ends and tabs stay."""
    assert printable("a\x1b[2Jb\x07\x9bc\r\n\td é 潮") == "a[2Jbc\n\td é 潮"
