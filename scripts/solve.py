#!/usr/bin/env python3
"""Answers one SMT-LIB file as the program `bitwuzla` does, of which Python's package has the library alone.

solve.py FILE
"""

import sys

from bitwuzla import Option, Options, Parser, TermManager


def main(file: str) -> None:
    options = Options()
    options.set(Option.PRODUCE_MODELS, True)
    Parser(TermManager(), options).parse(file, parse_only=False, parse_file=True)


if __name__ == "__main__":
    main(sys.argv[1])
