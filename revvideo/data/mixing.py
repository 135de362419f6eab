"""Mixup and cutmix of whole batches, and label smoothing, on the device.

Sources: Zhang et al. 2018 (mixup), Yun et al. 2019 (CutMix), with PySlowFast's choices (`datasets/mixup.py`): one
lambda a batch, the partner of a clip is the clip at the mirrored place of the batch, one cutmix box for all frames and
channels.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from revvideo.errors import InputError

Box = tuple[int, int, int, int]


def smooth_one_hot(labels: torch.Tensor, num_classes: int, smoothing: float = 0.0) -> torch.Tensor:
    """Targets with 1 - s + s/K at the label and s/K elsewhere.

    Args:
        labels: integer (B,).

    Returns:
        float32 (B, num_classes); rows sum to 1.
    """
    off = smoothing / num_classes
    targets = torch.full((len(labels), num_classes), off, dtype=torch.float32, device=labels.device)
    return targets.scatter_(1, labels.long().view(-1, 1), 1.0 - smoothing + off)


def mixed_targets(labels: torch.Tensor, num_classes: int, lam: float, smoothing: float = 0.0) -> torch.Tensor:
    """lam * own target + (1 - lam) * partner's target: float32 (B, num_classes)."""
    own = smooth_one_hot(labels, num_classes, smoothing)
    return own * lam + own.flip(0) * (1.0 - lam)


def mixup(clips: torch.Tensor, lam: float) -> torch.Tensor:
    """lam * x + (1 - lam) * x mirrored along the batch, in place; clips float (B, C, T, H, W)."""
    partner = clips.flip(0).mul_(1.0 - lam)
    return clips.mul_(lam).add_(partner)


def cutmix_box(height: int, width: int, lam: float, generator: np.random.Generator) -> Box:
    """(y0, y1, x0, x1) of a box with about 1 - lam of the area, its centre uniform, clipped at the border."""
    ratio = math.sqrt(1.0 - lam)
    cut_height, cut_width = int(height * ratio), int(width * ratio)
    y, x = int(generator.integers(0, height)), int(generator.integers(0, width))
    return (
        max(y - cut_height // 2, 0),
        min(y + cut_height // 2, height),
        max(x - cut_width // 2, 0),
        min(x + cut_width // 2, width),
    )


def cutmix(clips: torch.Tensor, box: Box) -> tuple[torch.Tensor, float]:
    """Fill `box` with the partner's pixels, in place; clips float (B, C, T, H, W).

    Returns:
        The clips and lambda as it really is: 1 - box area / picture area.
    """
    y0, y1, x0, x1 = box
    clips[..., y0:y1, x0:x1] = clips.flip(0)[..., y0:y1, x0:x1]
    height, width = clips.shape[-2:]
    return clips, 1.0 - (y1 - y0) * (x1 - x0) / (height * width)


@dataclass(frozen=True)
class Mixing:
    """Mixup, cutmix and label smoothing of a training batch.

    Attributes:
        num_classes: K.
        mixup_alpha: Beta(a, a) of mixup's lambda; 0 switches mixup off (MIXUP.ALPHA).
        cutmix_alpha: the same for cutmix (MIXUP.CUTMIX_ALPHA).
        prob: how often a batch is mixed at all (MIXUP.PROB).
        switch_prob: how often it is cutmix, where both are on (MIXUP.SWITCH_PROB).
        label_smoothing: s of `smooth_one_hot` (MIXUP.LABEL_SMOOTH_VALUE).
    """

    num_classes: int
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    prob: float = 1.0
    switch_prob: float = 0.5
    label_smoothing: float = 0.1

    def draw(self, generator: np.random.Generator) -> tuple[float, bool]:
        """(lambda, whether it is cutmix) for one batch; lambda 1 leaves the batch as it is."""
        if max(self.mixup_alpha, self.cutmix_alpha) <= 0 or generator.random() >= self.prob:
            return 1.0, False
        use_cutmix = self.cutmix_alpha > 0
        if use_cutmix and self.mixup_alpha > 0:
            use_cutmix = bool(generator.random() < self.switch_prob)
        alpha = self.cutmix_alpha if use_cutmix else self.mixup_alpha
        return float(generator.beta(alpha, alpha)), use_cutmix

    def __call__(
        self, clips: torch.Tensor, labels: torch.Tensor, generator: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix a batch. The clips are changed in place. In an odd batch the clip in the middle is its own partner.

        Args:
            clips: float (B, C, T, H, W).
            labels: integer (B,).
            generator: keyed by (seed, epoch, step, rank), see `sampling.mixing_generator`.

        Returns:
            The clips, and float32 targets (B, K).

        Raises:
            InputError: a batch of one clip, which has no partner, while mixup or cutmix is on.
        """
        if len(clips) == 1 and self.prob > 0 and max(self.mixup_alpha, self.cutmix_alpha) > 0:
            raise InputError(
                "mixup and cutmix mix each clip with another one of its batch, but the batch per process is 1: "
                "raise TRAIN.BATCH_SIZE to at least 2 a process, or set MIXUP.ENABLE False"
            )
        lam, use_cutmix = self.draw(generator)
        if lam < 1.0 and use_cutmix:
            clips, lam = cutmix(clips, cutmix_box(*clips.shape[-2:], lam, generator))
        elif lam < 1.0:
            clips = mixup(clips, lam)
        return clips, mixed_targets(labels, self.num_classes, lam, self.label_smoothing)
