"""What a model takes: the shape of its clips and how they are sampled and normalised."""

import dataclasses
from collections.abc import Sequence

from torch import Tensor

KINETICS_MEAN, KINETICS_STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """Input of a model.

    Args:
        frames: T; 1 for a model of images.
        stride: frames of the source between two frames of the clip, at the source's frame rate.
        size: (height, width) in pixels.
        mean: of each channel, for values in [0, 1]; as many numbers as the input has channels.
        std: of each channel.
        image: True for a model of images, which takes (B, C, H, W), or (B, C, 1, H, W).

    Raises:
        ValueError: an image of several frames.
    """

    frames: int = 16
    stride: int = 4
    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = KINETICS_MEAN
    std: tuple[float, ...] = KINETICS_STD
    image: bool = False

    def __post_init__(self):
        if self.image and self.frames != 1:
            raise ValueError(f"an image model takes 1 frame, not {self.frames} (input_size[0])")

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, T, H, W), or (C, H, W) of an image: the input without the batch."""
        return (self.channels, *(() if self.image else (self.frames,)), *self.size)

    def adapted(self, input_size: Sequence[int] | None = None, channels: int | None = None) -> "InputSpec":
        """The same for clips of ``input_size`` (frames, height, width) and so many channels; None changes nothing."""
        spec = self
        if input_size is not None:
            frames, height, width = input_size
            spec = dataclasses.replace(spec, frames=frames, size=(height, width))
        if channels is not None:
            mean, std = (tuple(v[i % len(v)] for i in range(channels)) for v in (spec.mean, spec.std))
            spec = dataclasses.replace(spec, mean=mean, std=std)
        return spec

    def check(self, clips: Tensor) -> Tensor:
        """``clips`` as a batch of volumes (B, C, T, H, W), T = 1 for images.

        Raises:
            ValueError: another number of dimensions, channels or frames, another size, or an empty batch.
        """
        if clips.shape[0] == 0:
            raise ValueError(f"the input has shape {tuple(clips.shape)}; expected at least one clip")
        shape, volume = tuple(clips.shape[1:]), (self.channels, self.frames, *self.size)
        if shape not in (self.shape, volume):
            names = "(B, C, H, W)" if self.image else "(B, C, T, H, W)"
            raise ValueError(
                f"the input has shape {tuple(clips.shape)}; this model takes {names} = (B, "
                f"{', '.join(map(str, self.shape))}) (DATA.INPUT_CHANNEL_NUM, DATA.NUM_FRAMES, DATA.TRAIN_CROP_SIZE)"
            )
        return clips if shape == volume else clips.unsqueeze(2)
