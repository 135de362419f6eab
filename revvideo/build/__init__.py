"""The only place where a config becomes objects. Below it every constructor takes plain arguments."""

from revvideo.build.compile import compile_model
from revvideo.build.data import (
    build_eval_input,
    build_manifest,
    build_test_dataset,
    build_test_loader,
    build_train_input,
    build_train_loader,
    build_val_loader,
    clips_per_forward,
    sampling_notes,
    temporal_views,
    video_batches,
)
from revvideo.build.model import build_model, check_pooling
from revvideo.build.solver import (
    build_loss,
    build_optimizer,
    choose_device,
    eval_amp_dtype,
    step_settings,
    train_settings,
)

__all__ = [
    "build_eval_input",
    "build_loss",
    "build_manifest",
    "build_model",
    "build_optimizer",
    "build_test_dataset",
    "build_test_loader",
    "build_train_input",
    "build_train_loader",
    "build_val_loader",
    "check_pooling",
    "choose_device",
    "clips_per_forward",
    "compile_model",
    "eval_amp_dtype",
    "sampling_notes",
    "step_settings",
    "temporal_views",
    "train_settings",
    "video_batches",
]
