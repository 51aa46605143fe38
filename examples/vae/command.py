"""The command line of an example: what its user can correct is refused in one line."""

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Refuses in one line, and takes no abbreviated flags."""

    def __init__(self, **given: Any):
        super().__init__(allow_abbrev=False, **given)

    def error(self, message: str) -> NoReturn:
        stop(self.prog, f"{message} (--help lists the flags)")


def stop(program: str, message: str) -> NoReturn:
    """Ends the program for something that its user can correct."""
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def make_folder(program: str, out: Path) -> None:
    """The folder of --out, or one line that says why it cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        stop(program, f"--out {out}: {error.strerror}")
