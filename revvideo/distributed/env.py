"""Which process of how many this is, read from the environment that a launcher leaves behind.

The only place below the commands that reads the environment. It imports no torch: the launcher runs on login nodes.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from revvideo.errors import InputError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class Process:
    """This process among those of a run.

    Attributes:
        rank: number of this process, 0 .. world_size - 1.
        world_size: number of processes of the run, on all machines.
        local_rank: number of this process on its machine, which is also the number of its GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """True for the one process that writes files and prints."""
        return self.rank == 0


def current_process(environ: Mapping[str, str] | None = None) -> Process:
    """Read RANK, WORLD_SIZE and LOCAL_RANK.

    With none of the three set, this is a plain process: rank 0 of 1. A set of variables that is incomplete or that
    contradicts itself is an error that lists what was found, never a silent world of one.

    Args:
        environ: the variables; the process's own environment if None.

    Raises:
        InputError: some but not all three are set, one is not a whole number, or the numbers do not fit together.
    """
    environ = os.environ if environ is None else environ
    found = {name: environ[name] for name in VARIABLES if name in environ}
    if not found:
        return Process()
    listing = ", ".join(f"{name}={found[name]!r}" if name in found else f"{name} not set" for name in VARIABLES)
    hint = "set all three, as torchrun does, or none for a plain process"
    if len(found) < len(VARIABLES):
        raise InputError(f"the distributed environment is incomplete: {listing}; {hint}")
    try:
        rank, world_size, local_rank = (int(found[name]) for name in VARIABLES)
    except ValueError as error:
        raise InputError(f"the distributed environment holds what is not a whole number: {listing}; {hint}") from error
    if world_size < 1 or not 0 <= local_rank <= rank < world_size:
        raise InputError(
            f"the distributed environment contradicts itself: {listing}; "
            "expected WORLD_SIZE >= 1 and 0 <= LOCAL_RANK <= RANK < WORLD_SIZE"
        )
    return Process(rank=rank, world_size=world_size, local_rank=local_rank)
