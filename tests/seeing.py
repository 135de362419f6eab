"""A checkpoint of the tiny model as a run leaves it, but without the time of a training: its weights are random."""

from pathlib import Path

import run_config
import torch

from revvideo import build
from revvideo.config import dump_config

CLASS_NAMES = ["run", "Jump_high", "sit", "a", "a", "eat"]


def write_checkpoint(path: Path, data: Path, *, class_names: list[str] | None = None, seed: int = 0) -> Path:
    """A file as of `run_net` on the data set `data`."""
    cfg = run_config.config(data, path.parent, {"INIT.SCHEME": "fan_in"})
    torch.manual_seed(seed)
    content = {"model_state": build.build_model(cfg).state_dict(), "cfg": dump_config(cfg), "epoch": 0}
    torch.save(content | ({"class_names": class_names} if class_names else {}), path)
    return path
