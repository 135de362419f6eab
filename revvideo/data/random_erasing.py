"""Random erasing of normalised clips on the device.

Source: Zhong et al. 2020, with the formulas of timm and PySlowFast (`datasets/random_erasing.py`). PySlowFast's
RE_COUNT also leaves a share of the frames alone when it is above 1 (it is passed as `num_splits`); here it is only the
number of boxes, and all frames of the clip are treated.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from revvideo.errors import InputError

Box = tuple[int, int, int, int]

_TRIES = 100


@dataclass(frozen=True)
class RandomErasing:
    """Replace random boxes of clips: `(clips float (B, C, T, H, W), generator) -> clips`, in place.

    Attributes:
        prob: how often a clip is erased (AUG.RE_PROB).
        mode: "pixel": a number of N(0, 1) for each pixel and channel, "rand": one colour of N(0, 1) for each frame of
            a box, "const": zeros, which is the mean colour after normalising (AUG.RE_MODE).
        count: most boxes in a clip; with more than one their number is uniform in 1..count, and they share the area
            (AUG.RE_COUNT).
        min_area, max_area: share of the picture that is erased.
        min_aspect: height / width is log-uniform in [min_aspect, 1 / min_aspect].
        cube: the same boxes in all frames of a clip; the fill differs in any case. Without it each frame decides for
            itself whether and where it is erased.
    """

    prob: float
    mode: str = "pixel"
    count: int = 1
    min_area: float = 0.02
    max_area: float = 1 / 3
    min_aspect: float = 0.3
    cube: bool = True

    def __post_init__(self):
        if not 0 <= self.prob <= 1:
            raise InputError(f"AUG.RE_PROB is {self.prob}; expected a probability")
        if self.mode not in ("pixel", "rand", "const"):
            raise InputError(f"AUG.RE_MODE is {self.mode!r}; expected pixel, rand or const")
        if self.count < 1:
            raise InputError(f"AUG.RE_COUNT is {self.count}; expected at least 1")

    def boxes(self, height: int, width: int, generator: np.random.Generator) -> list[Box]:
        """(y0, y1, x0, x1) of the boxes of one clip (or frame), in pixels; none if it is left alone."""
        if generator.random() > self.prob:
            return []
        count = self.count if self.count == 1 else int(generator.integers(1, self.count + 1))
        log_aspect = math.log(self.min_aspect)
        boxes = []
        for _ in range(count):
            for _ in range(_TRIES):
                area = generator.uniform(self.min_area, self.max_area) * height * width / count
                aspect = math.exp(generator.uniform(log_aspect, -log_aspect))
                h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
                if h < height and w < width:
                    y = int(generator.integers(0, height - h + 1))
                    x = int(generator.integers(0, width - w + 1))
                    boxes.append((y, y + h, x, x + w))
                    break
        return boxes

    def __call__(self, clips: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        """Erase each clip of a batch on its own.

        Args:
            clips: float (B, C, T, H, W), normalised, on any device; changed in place.
            generator: decides about boxes and seeds the fill. The fill is drawn on the device of the clips, so it
                differs between kinds of devices.

        Returns:
            The clips.
        """
        num_frames, height, width = clips.shape[-3:]
        noise = torch.Generator(clips.device).manual_seed(int(generator.integers(0, 2**63)))
        for clip in clips:
            if self.cube:
                for y0, y1, x0, x1 in self.boxes(height, width, generator):
                    self._fill(clip[:, :, y0:y1, x0:x1], noise)
                continue
            for t in range(num_frames):
                for y0, y1, x0, x1 in self.boxes(height, width, generator):
                    self._fill(clip[:, t : t + 1, y0:y1, x0:x1], noise)
        return clips

    def _fill(self, region: torch.Tensor, noise: torch.Generator) -> None:
        """Write over a view (C, T, h, w)."""
        if self.mode == "const":
            region.zero_()
            return
        channels, num_frames, height, width = region.shape
        size = (num_frames, channels, height, width) if self.mode == "pixel" else (num_frames, channels, 1, 1)
        # Frame by frame, as PySlowFast draws them.
        fill = torch.empty(size, dtype=region.dtype, device=region.device).normal_(generator=noise)
        region.copy_(fill.transpose(0, 1).expand_as(region))
