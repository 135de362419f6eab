"""The environment that a new job inherits, without what an outer job or launcher has left in it.

sbatch hands the environment on, so that a job submitted from inside a job, or from a shell of torchrun, would take the
outer one's ranks, meeting point, memory and GPUs for its own.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

# What torchrun tells its processes.
TORCHRUN_VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "GROUP_NAME"),
    *("ROLE_RANK", "ROLE_NAME", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)
# The GPUs of the machine that submits.
DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
PREFIXES = ("TORCHELASTIC_", "SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_", "PMI_", "PMIX_", "OMPI_")
# sbatch puts its variables above the lines of a script. These lines a script of ours always has ...
DECIDED = tuple(
    f"SBATCH_{name}"
    for name in (
        *("JOB_NAME", "TIMELIMIT", "SIGNAL", "REQUEUE", "NO_REQUEUE", "OUTPUT", "ERROR", "OPEN_MODE", "ARRAY_INX"),
        "WAIT",  # nor does a submission wait for the end of its job
    )
)
# ... and these where the user asks so. The other SBATCH_ variables are wishes of the user's like these.
ASKED = {
    **{"SBATCH_PARTITION": "partition", "SBATCH_ACCOUNT": "account", "SBATCH_QOS": "qos"},
    **{"SBATCH_CONSTRAINT": "constraint", "SBATCH_GPUS_PER_NODE": "gpus-per-node"},
    **dict.fromkeys(("SBATCH_MEM_PER_NODE", "SBATCH_MEM_PER_CPU", "SBATCH_MEM_PER_GPU"), "mem"),
}
# How a user's commands find and enter the cluster; no job sets these.
KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")


def outer_variables(environ: Mapping[str, str]) -> list[str]:
    """Names of the variables that an outer job or launcher has left, and of those that the launcher decides."""
    names = (*TORCHRUN_VARIABLES, *DEVICE_VARIABLES, *DECIDED)
    return [name for name in environ if (name in names or name.startswith(PREFIXES)) and name not in KEPT]


@contextmanager
def clean_environment(keep: Collection[str] = (), script: str = "") -> Iterator[None]:
    """Take those variables, apart from `keep`, and those that would overrule lines of a batch script, out of os.environ
    for as long as the block runs."""
    overruling = [name for name, option in ASKED.items() if f"\n#SBATCH --{option}=" in script and name in os.environ]
    names = [*outer_variables(os.environ), *overruling]
    taken = {name: os.environ.pop(name) for name in names if name not in keep}
    try:
        yield
    finally:
        os.environ.update(taken)
