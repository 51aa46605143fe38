"""What the flags of the examples take; every refusal says what was given and what is needed."""

import argparse
import math
from collections.abc import Callable

from vae.objective import SCHEDULES


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    wanted = f"at least {least}" if most is None else f"from {least} to {most}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"got {text!r}, needs a whole number {wanted}")
        return value

    return parse


def finite_number(text: str) -> float:
    """A finite number, or nan for everything else."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def positive_number(text: str) -> float:
    value = finite_number(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, needs a finite number greater than 0")
    return value


def number_from_0(text: str) -> float:
    value = finite_number(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, needs a finite number from 0 on")
    return value


def three_weights(text: str) -> tuple[float, ...]:
    weights = tuple(finite_number(part) for part in text.split(","))
    if len(weights) != 3 or not all(weight >= 0 for weight in weights):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, needs three finite numbers from 0 on, such as 1,0.5,1"
        )
    return weights


def schedule(text: str) -> tuple[str, int]:
    name, _, length = text.partition(":")
    if name not in SCHEDULES or not length.isdecimal() or not int(length):
        raise argparse.ArgumentTypeError(
            f"got {text!r}, needs one of {', '.join(SCHEDULES)}, a colon and a number of "
            "steps, such as linear:1000"
        )
    return name, int(length)


def address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise argparse.ArgumentTypeError(f"got {text!r}, needs HOST:PORT")
    return text
