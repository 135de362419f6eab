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
# How a user's commands find and enter the cluster; no job sets these. SBATCH_* are users' wishes too.
KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")


def outer_variables(environ: Mapping[str, str]) -> list[str]:
    """Names of the variables that an outer job or launcher has left."""
    names = (*TORCHRUN_VARIABLES, *DEVICE_VARIABLES)
    return [name for name in environ if (name in names or name.startswith(PREFIXES)) and name not in KEPT]


@contextmanager
def clean_environment(keep: Collection[str] = ()) -> Iterator[None]:
    """Take those variables, apart from `keep`, out of os.environ for as long as the block runs."""
    taken = {name: os.environ.pop(name) for name in outer_variables(os.environ) if name not in keep}
    try:
        yield
    finally:
        os.environ.update(taken)
