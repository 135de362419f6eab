"""What srun, and submitit's local executor in its place, leave in the environment, in the names of torchrun.

Both functions only translate: `env.current_process` reads all launchers by the same rules. What a launcher has not set
is missing from the translation too.
"""

import re
from collections.abc import Mapping

from revvideo.errors import InputError

# A step's own counts come first: SLURM_NTASKS and SLURM_NNODES are the job's under `srun --preserve-env`.
SLURM_SOURCES = {
    "RANK": ("SLURM_PROCID",),
    "WORLD_SIZE": ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
    "LOCAL_RANK": ("SLURM_LOCALID",),
    "GROUP_WORLD_SIZE": ("SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES"),
    "GROUP_RANK": ("SLURM_NODEID",),
}
SUBMITIT_SOURCES = {
    "RANK": ("SUBMITIT_LOCAL_GLOBALID",),
    "WORLD_SIZE": ("SUBMITIT_LOCAL_NTASKS",),
    "LOCAL_RANK": ("SUBMITIT_LOCAL_LOCALID",),
    "GROUP_WORLD_SIZE": ("SUBMITIT_LOCAL_JOB_NUM_NODES",),
    "GROUP_RANK": ("SUBMITIT_LOCAL_NODEID",),
}
SLURM_NEEDED = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NNODES", "SLURM_NODEID")
SUBMITIT_NEEDED = tuple(name for names in SUBMITIT_SOURCES.values() for name in names)
STEP_VARIABLES = ("SLURM_STEP_ID", "SLURM_STEPID")
NODE_LISTS = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
KNOWN_VARIABLES = (
    *("SUBMITIT_EXECUTOR", "SUBMITIT_LOCAL_JOB_ID", *SUBMITIT_NEEDED, "SLURM_JOB_ID", *STEP_VARIABLES),
    *(name for names in SLURM_SOURCES.values() for name in names),
    *NODE_LISTS,
)

_FIRST_SPECIAL_STEP = 0xFFFFFFF0  # batch script, interactive shell, external launch: no srun has started them
# Below 32768, where the kernel takes the ports of outgoing connections from.
_FIRST_PORT, _NUM_PORTS = 20000, 12000
_STEPS_APART = 131  # ports between two jobs of following numbers, so that their steps do not meet


def in_srun_step(environ: Mapping[str, str]) -> bool:
    """Whether srun has started this process: not an sbatch script, a salloc shell or a login shell."""
    step = _first(environ, STEP_VARIABLES)
    return step is not None and not (step.isdigit() and int(step) >= _FIRST_SPECIAL_STEP)


def srun_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables from those of an srun step.

    MASTER_ADDR and MASTER_PORT of the environment win. Else processes meet on the first host of the step, at a port
    that follows from the job and the step, so that all of them know it.

    Raises:
        InputError: the list of hosts cannot be read.
    """
    found = _translate(environ, SLURM_SOURCES)
    hosts = _first(environ, NODE_LISTS)
    if found.get("GROUP_WORLD_SIZE") == "1":
        found["MASTER_ADDR"] = "127.0.0.1"  # a host's name need not resolve on the host itself
    elif hosts:
        found["MASTER_ADDR"] = first_host(hosts)
    found |= _port(environ.get("SLURM_JOB_ID"), _first(environ, STEP_VARIABLES))
    return found | _meeting_point(environ)


def in_submitit_task(environ: Mapping[str, str]) -> bool:
    """Whether submitit's local executor has started this process."""
    return environ.get("SUBMITIT_EXECUTOR") == "local"


def submitit_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables from those of submitit's local executor, which is always on one machine."""
    found = _translate(environ, SUBMITIT_SOURCES) | {"MASTER_ADDR": "127.0.0.1"}
    return found | _port(environ.get("SUBMITIT_LOCAL_JOB_ID")) | _meeting_point(environ)


def first_host(node_list: str) -> str:
    """The first host of a Slurm list such as `127.0.0.[1-2],gpu[01-03]` or `rack[1,3]node[07-09]`.

    Raises:
        InputError: it is not such a list.
    """
    matched = re.match(r"(?:[^\s,\[\]]|\[\d+[\d,-]*\])+(?=,|$)", node_list)
    if not matched:
        raise InputError(
            f"the list of Slurm's hosts {node_list!r} ({', '.join(NODE_LISTS)}) cannot be read; expected one such as "
            "'gpu[01-03,07],login'; or name the first host by MASTER_ADDR"
        )
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", matched[0])


def _translate(environ: Mapping[str, str], sources: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    found = {name: _first(environ, names) for name, names in sources.items()}
    return {name: value for name, value in found.items() if value is not None}


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((environ[name] for name in names if name in environ), None)


def _port(job: str | None, step: str | None = None) -> dict[str, str]:
    if job is None or not job.isdigit():
        return {}
    number = int(job) * _STEPS_APART + (int(step) if step is not None and step.isdigit() else 0)
    return {"MASTER_PORT": str(_FIRST_PORT + number % _NUM_PORTS)}


def _meeting_point(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: environ[name] for name in ("MASTER_ADDR", "MASTER_PORT") if environ.get(name)}
