"""Geometric operations of RandAugment on whole clips: shears, translations and rotations, with PIL's results.

Frames are uint8 (T, H, W, 3), RGB, C-contiguous; every operation returns a new array and leaves its input alone. As in
PIL the arguments map output to input: a pixel whose centre comes from outside the picture gets the fill colour, any
other is interpolated from neighbours that are clamped to the picture. The mean difference from PIL is below 1 level.

A shear or a translation moves whole rows (or columns), each by one distance, so it needs no gather: rows with the same
whole-pixel distance are copied together, and the fraction is a weighted sum of neighbours with one weight a row. A
rotation gathers, but once for many frames: the frames lie side by side, so that one position is one row of T * 3
values, and an embedding bag sums the weighted rows of the neighbours.

Operations are not merged: one warp for two of them would bring back what the first has moved out of the picture.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")

# The first neighbour and the number of neighbours that a position between pixel 0 and pixel 1 is interpolated from.
_TAPS = {"nearest": (0, 1), "bilinear": (0, 2), "bicubic": (-1, 4)}

# Float weights add up to 1 only up to rounding: without this a flat area could lose a level when it is cut off.
_ROUNDING = 1e-3

# Values that a rotation holds as float32 at once: all of a usual clip, a few frames of a large one (16 frames of
# 1920 x 1080 pixels would take half a gigabyte twice).
_GATHERED_VALUES = 2**25


def shear_x(frames: np.ndarray, slope: float, fill: Sequence[int], interpolation: str) -> np.ndarray:
    """Output (x, y) comes from (x + slope * y, y)."""
    return _slide_rows(frames, slope, 0.0, fill, interpolation)


def translate_x(frames: np.ndarray, pixels: float, fill: Sequence[int], interpolation: str) -> np.ndarray:
    """Output (x, y) comes from (x + pixels, y)."""
    return _slide_rows(frames, 0.0, pixels, fill, interpolation)


def shear_y(frames: np.ndarray, slope: float, fill: Sequence[int], interpolation: str) -> np.ndarray:
    """Output (x, y) comes from (x, y + slope * x)."""
    return _slide_columns(frames, slope, 0.0, fill, interpolation)


def translate_y(frames: np.ndarray, pixels: float, fill: Sequence[int], interpolation: str) -> np.ndarray:
    """Output (x, y) comes from (x, y + pixels)."""
    return _slide_columns(frames, 0.0, pixels, fill, interpolation)


def rotate(frames: np.ndarray, degrees: float, fill: Sequence[int], interpolation: str) -> np.ndarray:
    """Turns counter-clockwise about the centre; the picture keeps its size."""
    num_frames, height, width, _ = frames.shape
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x = np.arange(width) + 0.5 - width / 2
    y = (np.arange(height) + 0.5 - height / 2)[:, None]
    source_x = cosine * x - sine * y + width / 2  # (H, W), of the pixel's centre
    source_y = sine * x + cosine * y + height / 2
    outside = (source_x < 0) | (source_x >= width) | (source_y < 0) | (source_y >= height)
    columns, x_weights = _neighbours(source_x, width, interpolation)  # (taps, H, W)
    rows, y_weights = _neighbours(source_y, height, interpolation)
    indices = (rows[:, None] * width + columns).reshape(-1, height * width)  # (taps * taps, H * W)
    weights = (y_weights[:, None] * x_weights).reshape(-1, height * width)
    indices, weights = (torch.from_numpy(np.ascontiguousarray(array.T)) for array in (indices, weights))
    frames_at_once = max(1, _GATHERED_VALUES // frames[0].size)
    parts = []
    for first in range(0, num_frames, frames_at_once):
        part = frames[first : first + frames_at_once]
        pixels = torch.from_numpy(_transposed(part.reshape(len(part), height * width, 3)))  # (H * W, T, 3)
        turned = F.embedding_bag(indices, pixels.flatten(1).float(), per_sample_weights=weights, mode="sum")
        turned = turned.add_(_ROUNDING).clamp_(0, 255).to(torch.uint8).numpy().reshape(-1, len(part), 3)
        turned[outside.reshape(-1)] = np.asarray(fill, np.uint8)
        parts.append(_transposed(turned).reshape(part.shape))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _neighbours(positions: np.ndarray, length: int, interpolation: str) -> tuple[np.ndarray, np.ndarray]:
    """Clamped indices (int32) and weights (float32) of each position's neighbours: (taps, H, W)."""
    tap, num_taps = _TAPS[interpolation]
    if interpolation != "nearest":
        positions = positions - 0.5
    whole = np.floor(positions)
    taps = np.arange(tap, tap + num_taps, dtype=np.int32).reshape(-1, 1, 1)
    weights = _float_weights((positions - whole).astype(np.float32), interpolation)
    return (whole.astype(np.int32) + taps).clip(0, length - 1), np.stack(weights)


def _transposed(pixels: np.ndarray) -> np.ndarray:
    """uint8 (A, B, 3) -> (B, A, 3), copied a pixel at a time, which is twice as fast as a byte at a time."""
    moved = np.ascontiguousarray(pixels.view("V3")[..., 0].T)
    return moved.view(np.uint8).reshape(*moved.shape, 3)


def _slide_rows(frames: np.ndarray, slope: float, offset: float, fill: Sequence[int], interpolation: str) -> np.ndarray:
    """Row y comes from slope * (y + 0.5) + offset pixels further right."""
    num_frames, height, width, _ = frames.shape
    whole, fraction, first, last = _distances(slope, offset, height, width, interpolation)
    tap, num_taps = _TAPS[interpolation]
    rows = frames.reshape(num_frames, height, width * 3)
    aligned = np.empty((num_frames, height, (width + num_taps - 1) * 3), np.uint8)
    for top, bottom in _runs(whole):
        band, target = rows[:, top:bottom], aligned[:, top:bottom]
        begin, end, start = _overlap(whole[top] + tap, width, num_taps)
        target[..., begin * 3 : end * 3] = band[..., (begin + start) * 3 : (end + start) * 3]
        for i in range(max(begin - num_taps, 0), begin):
            target[..., i * 3 : i * 3 + 3] = band[..., :3]
        for i in range(end, min(end + num_taps, width + num_taps - 1)):
            target[..., i * 3 : i * 3 + 3] = band[..., -3:]
    weights = [weight.reshape(-1, 1) for weight in _weights(fraction, interpolation)]
    views = [aligned[..., k * 3 : (k + width) * 3] for k in range(num_taps)]
    out = _weighted_sum(views, weights)
    background = np.tile(np.asarray(fill, np.uint8), width)
    for top, bottom in _runs(first * (width + 1) + last):
        out[:, top:bottom, : first[top] * 3] = background[: first[top] * 3]
        out[:, top:bottom, last[top] * 3 :] = background[last[top] * 3 :]
    return out.reshape(frames.shape)


def _slide_columns(
    frames: np.ndarray, slope: float, offset: float, fill: Sequence[int], interpolation: str
) -> np.ndarray:
    """Column x comes from slope * (x + 0.5) + offset pixels further down."""
    num_frames, height, width, _ = frames.shape
    whole, fraction, first, last = _distances(slope, offset, width, height, interpolation)
    tap, num_taps = _TAPS[interpolation]
    rows = frames.reshape(num_frames, height, width * 3)
    aligned = np.empty((num_frames, height + num_taps - 1, width * 3), np.uint8)
    for left, right in _runs(whole):
        band, target = rows[..., left * 3 : right * 3], aligned[..., left * 3 : right * 3]
        begin, end, start = _overlap(whole[left] + tap, height, num_taps)
        target[:, begin:end] = band[:, begin + start : end + start]
        target[:, max(begin - num_taps, 0) : begin] = band[:, :1]
        target[:, end : end + num_taps] = band[:, -1:]
    weights = [np.repeat(weight, 3) for weight in _weights(fraction, interpolation)]
    out = _weighted_sum([aligned[:, k : k + height] for k in range(num_taps)], weights)
    background = np.tile(np.asarray(fill, np.uint8), width)
    for left, right in _runs(first * (height + 1) + last):
        band = out[..., left * 3 : right * 3]
        band[:, : first[left]] = background[left * 3 : right * 3]
        band[:, last[left] :] = background[left * 3 : right * 3]
    return out.reshape(frames.shape)


def _distances(slope: float, offset: float, num_lines: int, length: int, interpolation: str):
    """How far each line slides: whole pixels, the fraction in [0, 1), and its valid output pixels [first, last)."""
    distance = slope * (np.arange(num_lines) + 0.5) + offset
    # Valid: the centre of the output pixel, x + 0.5, comes from within [0, length).
    first = np.ceil(-0.5 - distance).clip(0, length).astype(np.int64)
    last = np.ceil(length - 0.5 - distance).clip(0, length).astype(np.int64)
    whole = np.floor(distance + 0.5 if interpolation == "nearest" else distance)
    return whole.astype(np.int64), distance - whole, first, last


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """(begin, end) of each run of equal values."""
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return itertools.pairwise(edges)


def _overlap(start: int, length: int, num_taps: int) -> tuple[int, int, int]:
    """(begin, end) of the aligned pixels i whose source i + start lies in the picture, and start."""
    end = min(max(length - start, 0), length + num_taps - 1)
    return min(max(-start, 0), end), end, int(start)


def _weights(fraction: np.ndarray, interpolation: str) -> list[np.ndarray]:
    """The weight of each neighbour: uint16 in 1/256 (bilinear), else float32."""
    if interpolation == "bilinear":
        second = np.floor(fraction * 256 + 0.5).astype(np.uint16)
        return [(256 - second).astype(np.uint16), second]
    return _float_weights(fraction.astype(np.float32), interpolation)


def _float_weights(t: np.ndarray, interpolation: str) -> list[np.ndarray]:
    if interpolation == "nearest":
        return [np.ones_like(t)]
    if interpolation == "bilinear":
        return [1 - t, t]
    # PIL's cubic: a = -1.
    return [-t + 2 * t**2 - t**3, 1 - 2 * t**2 + t**3, t + t**2 - t**3, -(t**2) + t**3]


def _weighted_sum(views: list[np.ndarray], weights: list[np.ndarray]) -> np.ndarray:
    """Sum of weight * view for uint8 (T, H, W * 3) views, rounded down and clipped as PIL does; one view: a copy."""
    out = np.empty(views[0].shape, np.uint8)
    if len(views) == 1:
        np.copyto(out, views[0])
        return out
    dtype = weights[0].dtype
    total, term = (np.empty(out.shape[1:], dtype) for _ in range(2))
    for t, target in enumerate(out):
        for k, (view, weight) in enumerate(zip(views, weights)):
            part = term if k else total
            np.copyto(part, view[t])
            np.multiply(part, weight, out=part)
            if k:
                np.add(total, term, out=total)
        if dtype == np.uint16:
            np.right_shift(total, 8, out=total)
        else:
            np.add(total, np.float32(_ROUNDING), out=total)
            np.clip(total, 0, 255, out=total)
        np.copyto(target, total, casting="unsafe")
    return out
