"""Variables that torch reads when it is loaded: the commands and the jobs of a launcher set them before that."""

import os


def prepare_torch() -> None:
    """Set what the user has not set."""
    # OpenMP's idle threads spin by default and keep the cores from the loader's workers; what C++ has to say of a lost
    # connection comes between the lines that tell whose fault it is.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def quieten_profiler() -> None:
    """For RUN.AUTO_BATCH_SIZE: torch's profiler, which measures the trial step, announces every start and stop."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
