"""Evaluation in plain code from PySlowFast's formulas, to compare ours with; and weights that make views differ."""

import math
from pathlib import Path

import numpy as np
import tiny
import torch
from videos import decode_plainly

from revvideo import build


def write_sharp_checkpoint(cfg, path: Path, seed: int = 5) -> Path:
    """Weights whose softmax is far from uniform, so that a wrong view or a wrong ensemble shows."""
    torch.manual_seed(seed)
    model = build.build_model(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    torch.save({"epoch": 0, "model_state": model.state_dict()}, path)
    return path


def views_by_the_formulas(path: Path, rate: float, num_views: int, num_crops: int) -> torch.Tensor:
    """Normalised clips (V * S, C, T, H, W) of a video, temporal index outermost: the formulas in plain code."""
    frames = decode_plainly(str(path))  # (n, H, W, C); the short side is that of the crop: nothing is resized
    length = max(1.0, 4 * 4 / 30 * rate)
    latest = max(len(frames) - length, 0.0)
    corners = [0, math.ceil((tiny.WIDTH - 32) / 2), tiny.WIDTH - 32] if num_crops == 3 else [8]
    clips = []
    for view in range(num_views):
        start = latest * view / num_views
        picked = [
            int(min(max(float(position), 0.0), len(frames) - 1))
            for position in torch.linspace(start, start + length - 1, 4)
        ]
        for x in corners:
            clip = frames[picked][:, :, x : x + 32].astype(np.float32)  # (T, 32, 32, C)
            clips.append(((clip / 255.0 - 0.45) / 0.225).transpose(3, 0, 1, 2))  # (C, T, 32, 32)
    return torch.from_numpy(np.stack(clips))


def softmax_of_views(model: torch.nn.Module, clips: torch.Tensor) -> np.ndarray:
    """float64 (V * S, K), clip by clip."""
    with torch.no_grad():
        logits = torch.cat([model(clip[None]) for clip in clips]).double()
    return (logits.exp() / logits.exp().sum(dim=1, keepdim=True)).numpy()
