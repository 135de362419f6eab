"""Types of command-line arguments: argparse shows their errors in one line and leaves with exit code 2."""

import argparse
import re


def positive(text: str) -> int:
    """A whole number, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 1 or more")
    return int(text)


def natural(text: str) -> int:
    """A whole number, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 0 or more")
    return int(text)


def views(text: str) -> tuple[int, int]:
    """Temporal views x spatial crops, such as 5x1; PySlowFast's crops: 1 or 3."""
    match = re.fullmatch(r"([1-9]\d*)x([13])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected temporal views x crops (1 or 3), such as 5x1 or 10x3")
    return int(match[1]), int(match[2])


def names(text: str) -> list[str]:
    """Names with commas between them, each once."""
    found = [word.strip() for word in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty entry; expected names with commas between them")
    return list(dict.fromkeys(found))


def positives(text: str) -> list[int]:
    """Whole numbers from 1 on with commas between them, each once."""
    return list(dict.fromkeys(positive(word) for word in names(text)))


def naturals(text: str) -> list[int]:
    """Whole numbers from 0 on with commas between them, each once."""
    return list(dict.fromkeys(natural(word) for word in names(text)))
