"""Faults of a machine, for jobs of tests that are submitted with this folder on PYTHONPATH; Python imports it itself.

They follow files in the folder FAULTS, which the test writes and takes away while the job runs:

    slow      a slow file system: opening a video takes as many seconds as the file says
    raise.R   a broken device: the backward pass of rank R raises
"""

import os
import sys
import time
from pathlib import Path

FOLDER = Path(os.environ["FAULTS"])


class AtImport:
    """Puts the faults in place when a run is about to begin; until then nothing heavy is imported."""

    def find_spec(self, name, path=None, target=None) -> None:
        if name == "revvideo.jobs.running":
            sys.meta_path.remove(self)
            install()


def install() -> None:
    import av
    import torch

    opened, backward = av.open, torch.Tensor.backward

    def slow_open(*args, **kwargs):
        slow = FOLDER / "slow"
        if slow.exists():
            time.sleep(float(slow.read_text()))
        return opened(*args, **kwargs)

    def failing_backward(*args, **kwargs):
        if (FOLDER / f"raise.{os.environ['SLURM_PROCID']}").exists():
            raise RuntimeError("the device is lost")
        return backward(*args, **kwargs)

    av.open, torch.Tensor.backward = slow_open, failing_backward


sys.meta_path.insert(0, AtImport())
