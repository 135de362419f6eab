"""Which process of how many this is, read from the environment that a launcher leaves behind.

torchrun, srun, submitit's local executor, variables set by hand and a plain process all become one `Process`. The only
place below the commands that reads the environment. It imports no torch: the launcher runs on login nodes.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from revvideo.distributed.slurm_env import (
    KNOWN_VARIABLES,
    SLURM_NEEDED,
    SUBMITIT_NEEDED,
    in_srun_step,
    in_submitit_task,
    srun_variables,
    submitit_variables,
)
from revvideo.errors import InputError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # what tells a launcher's process from a plain one
PLACE_VARIABLES = (*VARIABLES, "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

_HINT = "start it by torchrun or srun, which set all of it, or unset all of it for a plain process"


@dataclass(frozen=True)
class Process:
    """This process among those of a run.

    Attributes:
        rank: number of this process, 0 .. world_size - 1.
        world_size: number of processes of the run, on all machines.
        local_rank: number of this process on its machine, which is also the number of its GPU.
        local_world_size: number of processes on this machine, and on every other one.
        machine: number of this machine, 0 .. num_machines - 1.
        num_machines: number of machines of the run.
        master_addr, master_port: where processes meet; "" and 0 where a process is alone and needs none.
        source: who said so: torchrun, srun, submitit (its local executor), environment (variables set by hand or by
            our own `spawn`) or plain (nobody).
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    machine: int = 0
    num_machines: int = 1
    master_addr: str = ""
    master_port: int = 0
    source: str = "plain"

    @property
    def is_main(self) -> bool:
        """True for the one process that writes files and prints."""
        return self.rank == 0


def current_process(environ: Mapping[str, str] | None = None) -> Process:
    """This process, by the first of these that is there.

    1. RANK, WORLD_SIZE and LOCAL_RANK, of torchrun or set by hand. A world of more than one needs MASTER_ADDR and
       MASTER_PORT too, and LOCAL_WORLD_SIZE or GROUP_WORLD_SIZE unless the processes meet on this machine's loopback.
    2. submitit's local executor.
    3. A step of srun. The shell of an sbatch script or of salloc is none.
    4. Nothing: a plain process, rank 0 of 1.

    A set of variables that is incomplete or that contradicts itself is an error that lists what was found, never a
    silent world of one.

    Args:
        environ: the variables; the process's own environment if None.

    Raises:
        InputError: as said, or a number is not a whole one.
    """
    environ = os.environ if environ is None else environ
    if any(name in environ for name in VARIABLES):
        source = "torchrun" if "TORCHELASTIC_RUN_ID" in environ else "environment"
        needed, variables = VARIABLES, {name: environ[name] for name in PLACE_VARIABLES if name in environ}
    elif in_submitit_task(environ):
        source = "submitit"
        needed, variables = SUBMITIT_NEEDED, submitit_variables(environ)
    elif in_srun_step(environ):
        source = "srun"
        needed, variables = SLURM_NEEDED, srun_variables(environ)
    else:
        return Process()
    return _process(source, variables, needed, environ)


def environment_of(process: Process) -> dict[str, str]:
    """The variables by which `current_process` finds `process` again; its source is `environment` then."""
    place = {
        "RANK": process.rank,
        "WORLD_SIZE": process.world_size,
        "LOCAL_RANK": process.local_rank,
        "LOCAL_WORLD_SIZE": process.local_world_size,
        "GROUP_RANK": process.machine,
        "GROUP_WORLD_SIZE": process.num_machines,
    }
    if process.master_addr:
        place |= {"MASTER_ADDR": process.master_addr, "MASTER_PORT": process.master_port}
    return {name: str(value) for name, value in place.items()}


def machine_processes(*, num_processes: int, num_machines: int, machine: int, init_method: str) -> list[Process]:
    """The processes to start on this machine, numbered as PySlowFast does: machine * num_processes + local rank.

    Args:
        num_processes: processes of each machine.
        num_machines: machines of the run (NUM_SHARDS).
        machine: number of this one (SHARD_ID).
        init_method: `tcp://HOST:PORT` of machine 0, the same on all; "" on one machine: a free port of the loopback.

    Raises:
        InputError: the meeting point is missing or malformed, or there is no such machine.
    """
    assert num_processes >= 1, num_processes
    if not 0 <= machine < num_machines:
        raise InputError(f"SHARD_ID is {machine}; expected 0 .. {num_machines - 1}, below NUM_SHARDS {num_machines}")
    if init_method:
        address, port = _parse_init_method(init_method)
    elif num_machines > 1:
        raise InputError(
            f"NUM_SHARDS is {num_machines}, but these machines have no place to meet; add --init_method "
            "tcp://HOST:PORT with the name of machine 0 and a free port of it, the same on all machines"
        )
    else:
        address, port = "127.0.0.1", free_port()
    return [
        Process(
            rank=machine * num_processes + local_rank,
            world_size=num_machines * num_processes,
            local_rank=local_rank,
            local_world_size=num_processes,
            machine=machine,
            num_machines=num_machines,
            master_addr=address,
            master_port=port,
            source="environment",
        )
        for local_rank in range(num_processes)
    ]


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _process(source: str, variables: Mapping[str, str], needed: tuple[str, ...], environ: Mapping[str, str]) -> Process:
    """The process that `variables`, torchrun's, describe; `needed` are the launcher's own names, for messages."""
    numbers = _numbers(variables, needed, environ)
    rank, world_size, local_rank = (numbers[name] for name in VARIABLES)
    address, port = variables.get("MASTER_ADDR", ""), numbers.get("MASTER_PORT", 0)
    if world_size > 1 and not (address and "MASTER_PORT" in numbers):
        listing = _listing(environ, (*needed, "MASTER_ADDR", "MASTER_PORT"))
        raise InputError(
            f"the distributed environment is incomplete: {listing}; {world_size} processes need MASTER_ADDR and "
            f"MASTER_PORT to meet; {_HINT}"
        )
    local_world_size = _local_world_size(world_size, numbers, address)
    if local_world_size is None:
        listing = _listing(environ, (*needed, "LOCAL_WORLD_SIZE"))
        raise InputError(
            f"the distributed environment is incomplete: {listing}; LOCAL_WORLD_SIZE, the number of processes of a "
            f"machine, decides over the batch and the learning rate; {_HINT}"
        )
    process = Process(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
        machine=numbers.get("GROUP_RANK", (rank - local_rank) // max(1, local_world_size)),
        num_machines=numbers.get("GROUP_WORLD_SIZE", world_size // max(1, local_world_size)),
        master_addr=address,
        master_port=port,
        source=source,
    )
    wrong = _contradiction(process, machine_given="GROUP_RANK" in numbers)
    if wrong:
        raise InputError(f"the distributed environment contradicts itself: {_listing(environ, needed)}; {wrong}")
    return process


def _numbers(variables: Mapping[str, str], needed: tuple[str, ...], environ: Mapping[str, str]) -> dict[str, int]:
    """Those of `variables` that are numbers; RANK, WORLD_SIZE and LOCAL_RANK are among them and fit together."""
    if any(name not in variables for name in VARIABLES):
        raise InputError(f"the distributed environment is incomplete: {_listing(environ, needed)}; {_HINT}")
    try:
        numbers = {name: int(value) for name, value in variables.items() if name != "MASTER_ADDR"}
    except ValueError as error:
        raise InputError(
            f"the distributed environment holds what is not a whole number: {_listing(environ, needed)}; {_HINT}"
        ) from error
    rank, world_size, local_rank = (numbers[name] for name in VARIABLES)
    if world_size < 1 or not 0 <= local_rank <= rank < world_size:
        raise InputError(
            f"the distributed environment contradicts itself: {_listing(environ, needed)}; "
            "expected WORLD_SIZE >= 1 and 0 <= LOCAL_RANK <= RANK < WORLD_SIZE"
        )
    return numbers


def _local_world_size(world_size: int, numbers: Mapping[str, int], address: str) -> int | None:
    """Processes of this machine; None where the variables do not tell."""
    if "LOCAL_WORLD_SIZE" in numbers:
        return numbers["LOCAL_WORLD_SIZE"]
    if "GROUP_WORLD_SIZE" in numbers:
        return world_size // max(1, numbers["GROUP_WORLD_SIZE"])
    if world_size == 1 or address in ("localhost", "::1") or address.startswith("127."):
        return world_size
    return None


def _contradiction(process: Process, *, machine_given: bool) -> str | None:
    """Why a process of this rank and world cannot be where the other numbers say; None if it can."""
    world_size, local_world_size = process.world_size, process.local_world_size
    if world_size != local_world_size * process.num_machines:
        return (
            f"{world_size} processes are not {local_world_size} on each of {process.num_machines} machines; every "
            "machine must have as many as the others"
        )
    if process.local_rank >= local_world_size:
        return f"the local rank {process.local_rank} is not below the {local_world_size} processes of a machine"
    if not 0 <= process.machine < process.num_machines:
        return f"machine {process.machine} is not one of 0 .. {process.num_machines - 1}"
    if not machine_given and process.machine * local_world_size + process.local_rank != process.rank:
        return "expected RANK = machine * LOCAL_WORLD_SIZE + LOCAL_RANK; for another order set GROUP_RANK, the machine"
    if world_size > 1 and not 1 <= process.master_port <= 65535:
        return f"MASTER_PORT {process.master_port} is no port, 1 .. 65535"
    return None


def _listing(environ: Mapping[str, str], needed: tuple[str, ...]) -> str:
    """The variables of all launchers that were found, and those of `needed` that were not."""
    found = [name for name in (*PLACE_VARIABLES, *KNOWN_VARIABLES) if name in environ]
    names = dict.fromkeys([*needed, *found])  # in this order, each once
    return ", ".join(f"{name}={environ[name]!r}" if name in environ else f"{name} not set" for name in names)


def _parse_init_method(init_method: str) -> tuple[str, int]:
    parts = urlsplit(init_method)
    try:
        port = parts.port
    except ValueError:  # no number, or above 65535
        port = None
    if parts.scheme != "tcp" or not parts.hostname or not port:
        raise InputError(
            f"--init_method (DIST.INIT_METHOD) is {init_method!r}; expected tcp://HOST:PORT, such as "
            "tcp://gpu01:29500, with the name of machine 0 and a free port of it"
        )
    return parts.hostname, port
