"""Where the processes of a job meet: printed as shell lines, which the batch script evaluates on its first node.

export MASTER_ADDR=gpu01 MASTER_PORT=23917
"""

import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from revvideo.errors import InputError
from revvideo.exit_codes import run_guarded

FIRST_PORT, LAST_PORT = 10000, 65535
EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
USUAL_EPHEMERAL_PORTS = (32768, 60999)
JOBS_APART, RESTARTS_APART = 131, 7919  # ports between jobs, and restarts, of following numbers
SCONTROL_SECONDS = 30


def main() -> int:
    """Print the lines; what the job's own setup or --env has set stays.

    Raises:
        InputError: no address, or no port, is left.
    """
    address = os.environ.get("MASTER_ADDR") or master_address(os.environ)
    port = os.environ.get("MASTER_PORT") or master_port(os.environ)
    print(f"export MASTER_ADDR={shlex.quote(address)} MASTER_PORT={shlex.quote(str(port))}")
    return 0


def master_address(environ: Mapping[str, str]) -> str:
    """An address of this node, the job's first, at which the others reach it.

    Raises:
        InputError: none of its names can be resolved.
    """
    if environ.get("SLURM_JOB_NUM_NODES", "1") == "1":
        return "127.0.0.1"  # a host's name need not resolve on the host itself
    node = environ.get("SLURMD_NODENAME", "")
    # The first is what Slurm's own daemons reach the node by.
    names = [
        name for name in dict.fromkeys([_node_address(node), node, socket.gethostname(), socket.getfqdn()]) if name
    ]
    for name in names:
        if _resolves(name):
            return name
    raise InputError(
        f"the job's first node has no name that can be resolved (tried {', '.join(names)}), so that the other nodes "
        "cannot find it; give its address by --env MASTER_ADDR=..., or let the names of the nodes be resolved"
    )


def _node_address(node: str) -> str:
    """Slurm's NodeAddr of a node; "" if Slurm does not tell."""
    try:
        done = subprocess.run(
            ["scontrol", "show", "node", "-o", node], capture_output=True, text=True, timeout=SCONTROL_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"\bNodeAddr=(\S+)", done.stdout) if node else None
    return found[1] if found else ""


def _resolves(name: str) -> bool:
    try:
        socket.getaddrinfo(name, None)
    except (OSError, UnicodeError):
        return False
    return True


def master_port(environ: Mapping[str, str]) -> int:
    """A port that nobody listens on, another one for each job and each of its restarts.

    Raises:
        InputError: none is free.
    """
    ports = candidate_ports(_ephemeral_ports())
    job, restart = (_number(environ.get(name)) for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"))
    first = (job * JOBS_APART + restart * RESTARTS_APART) % len(ports)
    return free_port([*ports[first:], *ports[:first]])


def candidate_ports(ephemeral: tuple[int, int]) -> list[int]:
    """Ports that the kernel gives to nobody's outgoing connections; all, if it gives all."""
    ports = range(FIRST_PORT, LAST_PORT + 1)
    return [port for port in ports if not ephemeral[0] <= port <= ephemeral[1]] or list(ports)


def free_port(ports: Sequence[int]) -> int:
    """The first that can be listened on now.

    Raises:
        InputError: there is none.
    """
    for port in ports:
        try:
            socket.create_server(("", port)).close()
        except OSError:
            continue
        return port
    raise InputError(f"none of {len(ports)} ports of {socket.gethostname()} is free; give one by --env MASTER_PORT=...")


def _ephemeral_ports() -> tuple[int, int]:
    try:
        first, last = EPHEMERAL_PORTS.read_text(encoding="utf-8").split()
    except (OSError, ValueError):  # not Linux
        return USUAL_EPHEMERAL_PORTS
    return int(first), int(last)


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


if __name__ == "__main__":
    sys.exit(run_guarded(main))
