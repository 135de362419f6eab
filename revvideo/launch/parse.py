"""Values of options and profiles as they are written -> what they mean. Every refusal is one readable message."""

import math
import re

from revvideo.errors import InputError

# Slurm's: 90, 90:00, 1:30:00, 3-0, 3-0:30, 3-0:30:00
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<numbers>\d+(?::\d+){0,2})")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_GIB = {"K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2.0**10}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_INTERFACE = re.compile(r"[\^=]?[\w.:-]+(,[\w.:-]+)*")
_JOB_ID = re.compile(r"\d+(_\d+)?")

# Where a rank stands is the launcher's to say.
_PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")


def parse_whole(text: str, name: str, smallest: int) -> int:
    """A whole number.

    Args:
        text: as it was written.
        name: the option, or the profile and its key, for the message; so for all functions here.
        smallest: what it may not be below.

    Raises:
        InputError: it is none, or too small.
    """
    if not text.isascii() or not text.isdecimal() or int(text) < smallest:
        raise InputError(f"{name} is {text!r}; expected a whole number, {smallest} or more")
    return int(text)


def parse_minutes(text: str, name: str) -> int:
    """A time limit as Slurm writes it, in minutes, seconds rounded up.

    Raises:
        InputError: no such time, or none at all.
    """
    match = _TIME.fullmatch(text.strip())
    minutes = 0
    if match is not None:
        numbers = [int(number) for number in match["numbers"].split(":")]
        if match["days"] is not None:
            hours, mins, seconds = (*numbers, 0, 0)[:3]
            hours += 24 * int(match["days"])
        elif len(numbers) == 3:
            hours, mins, seconds = numbers
        else:
            hours, mins, seconds = 0, numbers[0], (*numbers, 0)[1]
        minutes = hours * 60 + mins + math.ceil(seconds / 60)
    if minutes < 1:
        raise InputError(
            f"{name} is {text!r}; expected a time limit of a minute or more, as Slurm writes it: minutes (90), "
            "hours:minutes:seconds (72:00:00), days-hours:minutes:seconds (3-00:00:00)"
        )
    return minutes


def parse_memory(text: str, name: str, unit: str = "M") -> float:
    """Memory in GiB: 64G, 64000M, 64000 (`unit`: Slurm's is M; K, M, G, T are powers of 1024).

    Raises:
        InputError: no such amount, or none at all.
    """
    match = _MEMORY.fullmatch(text.strip())
    gib = float(match[1]) * _GIB[(match[2] or unit).upper()] if match is not None else 0.0
    if gib <= 0:
        plain = {"M": "MiB", "G": "GiB"}[unit]
        raise InputError(
            f"{name} is {text!r}; expected the memory of a node, such as 64G (a plain number is in {plain})"
        )
    return gib


def parse_line(text: str, name: str) -> str:
    """Text that fits on a line of the batch script; it may be empty.

    Raises:
        InputError: it holds a line break or another control character.
    """
    if any(not character.isprintable() for character in text):
        raise InputError(f"{name} is {text!r}; expected text on one line, without control characters")
    return text.strip()


def parse_interface(text: str, name: str) -> str:
    """A network interface, as NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME take it; "" lets them choose.

    Raises:
        InputError: no such name.
    """
    if text and not _INTERFACE.fullmatch(text):
        raise InputError(f"{name} is {text!r}; expected a network interface of the nodes, such as ib0 or eth0")
    return text


def parse_variable(text: str, name: str) -> tuple[str, str]:
    """NAME=VALUE.

    Raises:
        InputError: no `=`, no name of a variable, a variable that the launcher sets, a line break in the value.
    """
    variable, equals, value = text.partition("=")
    if not equals or not _VARIABLE.fullmatch(variable):
        raise InputError(f"{name} is {text!r}; expected NAME=VALUE, such as NCCL_DEBUG=INFO")
    return check_variable(variable, value, name)


def check_variable(variable: str, value: str, name: str) -> tuple[str, str]:
    """A variable of the job and its value, if they may be.

    Raises:
        InputError: see `parse_variable`.
    """
    if not _VARIABLE.fullmatch(variable):
        raise InputError(f"{name} has the variable {variable!r}; expected letters, digits and _, no digit first")
    if variable in _PLACE or variable.startswith(("SLURM_", "SUBMITIT_")):
        raise InputError(f"{name} sets {variable}, which tells a process its place: the launcher sets it; leave it out")
    if "\n" in value or "\0" in value:
        raise InputError(f"{name} has a line break in the value of {variable}: {value!r}; expected one line")
    return variable, value


def parse_job_id(text: str, name: str) -> str:
    """A job id: 17, or 17_2 in an array.

    Raises:
        InputError: it is none.
    """
    if not _JOB_ID.fullmatch(text):
        raise InputError(f"{name} is {text!r}; expected a job id, such as 17 or 17_2 (`squeue --me` lists yours)")
    return text


def parse_choice(text: str, name: str, choices: tuple[str, ...]) -> str:
    """One of a few words.

    Raises:
        InputError: another one.
    """
    if text not in choices:
        raise InputError(f"{name} is {text!r}; expected {', '.join(choices[:-1])} or {choices[-1]}")
    return text
