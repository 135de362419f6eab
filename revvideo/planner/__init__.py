"""Peak training memory and the largest batch of a config, without a GPU and without allocating (docs/planner.md)."""

from revvideo.planner.largest_batch import TooLittleMemory, largest_batch, usable_gpu_bytes
from revvideo.planner.plan import PRECISIONS, TrainingPlan, plan_training, training_modes

__all__ = [
    "PRECISIONS",
    "TooLittleMemory",
    "TrainingPlan",
    "largest_batch",
    "plan_training",
    "training_modes",
    "usable_gpu_bytes",
]
