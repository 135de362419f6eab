"""A training batch: from the items of a data set, and in parts."""

from dataclasses import dataclass, field, replace

import torch


@dataclass
class Batch:
    """A training batch; the S clips of one video are neighbours.

    Attributes:
        video: uint8 (B * S, T, C, H, W), channels innermost in memory.
        label: int64 (B * S,).
        index: int64 (B * S,), of the videos in the manifest.
        num_videos: B.
        bad: [(path, reason)] of the videos that were replaced because they do not decode.
        damaged: [(path, reason)] of the videos in the batch that have filled-in frames.
    """

    video: torch.Tensor
    label: torch.Tensor
    index: torch.Tensor
    num_videos: int
    bad: list[tuple[str, str]] = field(default_factory=list)
    damaged: list[tuple[str, str]] = field(default_factory=list)

    def pin_memory(self) -> "Batch":
        """Called by the DataLoader when it pins memory."""
        return replace(
            self, video=self.video.pin_memory(), label=self.label.pin_memory(), index=self.index.pin_memory()
        )


def batch_part(batch: Batch, part: int, num_parts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips and labels of one of `num_parts` equal parts of a batch, which together are the batch.

    A part of an even number of clips holds with each clip the one at the mirrored place of the batch, at the mirrored
    place of the part: what mixes a batch with its mirror image gives the same in parts.

    Args:
        batch: B clips, a multiple of `num_parts`.
        part: 0 .. num_parts - 1.

    Returns:
        uint8 (B / num_parts, T, C, H, W), channels innermost in memory, and int64 (B / num_parts,).
    """
    if num_parts == 1:
        return batch.video, batch.label
    num_clips = len(batch.label)
    size = num_clips // num_parts
    if size % 2:
        slices = [slice(part * size, (part + 1) * size)]
    else:
        first, half = part * size // 2, size // 2
        slices = [slice(first, first + half), slice(num_clips - first - half, num_clips - first)]
    video = torch.cat([batch.video[each].permute(0, 1, 3, 4, 2) for each in slices])  # (b, T, H, W, C)
    return video.permute(0, 1, 4, 2, 3), torch.cat([batch.label[each] for each in slices])


def collate_clips(items: list[dict]) -> Batch:
    """Items of `TrainClips` to a `Batch`, keeping the channels innermost."""
    video = torch.cat([item["video"].permute(0, 1, 3, 4, 2) for item in items])  # (B * S, T, H, W, C)
    clips = torch.tensor([len(item["video"]) for item in items])
    return Batch(
        video=video.permute(0, 1, 4, 2, 3),  # (B * S, T, C, H, W)
        label=torch.tensor([item["label"] for item in items]).repeat_interleave(clips),
        index=torch.tensor([item["index"] for item in items]).repeat_interleave(clips),
        num_videos=len(items),
        bad=[entry for item in items for entry in item["bad"]],
        damaged=[entry for item in items for entry in item["damaged"]],
    )
