"""What the tests of prediction share: small trained models of every kind of source, and what the evaluator says."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from reduced_models import reduced_options

from revvideo import create_model
from revvideo.models.checkpoint_formats import write_weights

IMAGE_MODEL = "rev_vit_s"


def evaluated(run: Path) -> tuple[list[str], np.ndarray]:
    """Paths and scores of predictions.npz in a run folder."""
    with np.load(run / "predictions.npz") as content:
        return content["path"].tolist(), content["scores"]


def weights_file(folder: Path, name: str) -> tuple[torch.nn.Module, Path]:
    """A reduced model of the registry, and its weights in a file that carries no config."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=6, **reduced_options(name)).eval()
    return model, write_weights(folder / f"{name.replace('/', '_')}.safetensors", model.state_dict())


def write_picture(path: Path, size: tuple[int, int] = (48, 40), seed: int = 0) -> Path:
    """A random PNG of `size` (width, height)."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path
