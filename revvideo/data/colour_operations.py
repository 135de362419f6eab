"""Colour operations of RandAugment and colour jitter on whole clips, with PIL's results.

Frames are uint8 (T, H, W, 3), RGB, C-contiguous; every operation returns a new array and leaves its input alone.

Operations that map a grey level to a grey level are tables of 256 bytes: several of them in a row become one table,
and `bytearray.translate` applies it to a clip three times faster than an index by numpy. The rest is integer
arithmetic, a frame at a time so that the work stays in the cache, on rows of W * 3 values so that the vector units see
long rows. Results are PIL's (ImageOps, ImageEnhance) within 2 grey levels, for enhancement factors up to 3.
"""

import numpy as np

INVERT = np.arange(255, -1, -1, dtype=np.uint8)

# ITU-R 601 luma as PIL computes it, in 1/65536 (for means) and in 1/256 (for pixels).
_LUMA_FINE = np.array([19595, 38470, 7471])
_LUMA = (77, 150, 29)
_SMOOTH_SUM = 13  # PIL's SMOOTH kernel: 5 in the middle, 1 at the 8 neighbours


# Tables: uint8 (256,), or (T, 256) where each frame has its own


def posterize_table(bits: int) -> np.ndarray:
    """Keeps the `bits` highest bits of 8; 0 makes everything black."""
    return (np.arange(256) & (0xFF << (8 - bits))).astype(np.uint8)


def solarize_table(threshold: int) -> np.ndarray:
    """Inverts the levels from `threshold` on."""
    levels = np.arange(256)
    return np.where(levels < threshold, levels, 255 - levels).astype(np.uint8)


def solarize_add_table(addition: int, threshold: int = 128) -> np.ndarray:
    """Adds `addition` to the levels below `threshold`."""
    levels = np.arange(256)
    return np.where(levels < threshold, np.minimum(levels + addition, 255), levels).astype(np.uint8)


def brightness_table(factor: float) -> np.ndarray:
    """Multiplies by `factor`: 0 is black, 1 changes nothing."""
    return _blend_tables(np.zeros(1), factor)[0]


def contrast_tables(frames: np.ndarray, factor: float) -> np.ndarray:
    """Moves all levels away from (factor > 1) or towards each frame's own mean grey level: (T, 256)."""
    num_frames, height, width, _ = frames.shape
    rows = frames.reshape(num_frames, height, width * 3)
    sums = np.zeros((num_frames, width * 3), np.int64)
    for top in range(0, height, 256):  # 256 rows of bytes just fit into 16 bits
        sums += np.add.reduce(rows[:, top : top + 256], axis=1, dtype=np.uint16)
    channel_means = sums.reshape(num_frames, width, 3).sum(1) / (height * width)
    return _blend_tables(np.floor(channel_means @ _LUMA_FINE / 65536 + 0.5), factor)


def _blend_tables(base: np.ndarray, factor: float) -> np.ndarray:
    """base + factor * (level - base), cut off as PIL does, for each of n bases: (n, 256)."""
    base = base.astype(np.float32)[:, None]
    levels = base + np.float32(factor) * (np.arange(256, dtype=np.float32) - base)
    return levels.clip(0, 255).astype(np.uint8)


def apply_tables(frames: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Every level of every channel through one table (256,), or through the table of its frame (T, 256)."""
    if tables.ndim == 1:
        return np.frombuffer(bytearray(frames.data).translate(tables.tobytes()), np.uint8).reshape(frames.shape)
    out = np.empty_like(frames)
    for frame, table, target in zip(frames, tables, out):
        translated = bytearray(frame.data).translate(table.tobytes())
        target[...] = np.frombuffer(translated, np.uint8).reshape(frame.shape)
    return out


# Each frame and channel by its own histogram


def autocontrast(frames: np.ndarray) -> np.ndarray:
    """Stretches each channel of each frame to 0..255."""
    num_frames, height, width, _ = frames.shape
    rows = frames.reshape(num_frames, height, width * 3)
    low = rows.min(1).reshape(num_frames, width, 3).min(1)
    high = rows.max(1).reshape(num_frames, width, 3).max(1)
    span = high.astype(np.int64) - low
    # In 1/256, rounded up: the highest level still reaches 255, and the product still fits into 16 bits.
    scale = np.where(span > 0, -(-255 * 256 // np.maximum(span, 1)), 256).astype(np.uint16)
    low = np.where(span > 0, low, 0).astype(np.uint16)
    out = np.empty_like(rows)
    levels = np.empty((height, width * 3), np.uint16)
    for row, target, offset, factor in zip(rows, out, low, scale):
        np.copyto(levels, row)
        np.subtract(levels, np.tile(offset, width), out=levels)
        np.multiply(levels, np.tile(factor, width), out=levels)
        np.right_shift(levels, 8, out=levels)
        np.copyto(target, levels, casting="unsafe")
    return out.reshape(frames.shape)


def equalize(frames: np.ndarray) -> np.ndarray:
    """Makes the histogram of each channel of each frame as flat as a table can."""
    out = np.empty_like(frames)
    for frame, target in zip(frames, out):
        image = as_image(frame)
        histogram = np.array(image.histogram(), np.int64).reshape(3, 256)
        target[...] = image.point(np.concatenate([_equalizing_table(counts) for counts in histogram]).tolist())
    return out


def _equalizing_table(counts: np.ndarray) -> np.ndarray:
    occupied = counts[counts > 0]
    step = (occupied.sum() - occupied[-1]) // 255 if len(occupied) > 1 else 0
    if step == 0:
        return np.arange(256)
    before = np.cumsum(counts) - counts
    return ((step // 2 + before) // step).clip(0, 255)


# Each pixel by its own colour or its neighbours


def saturation(frames: np.ndarray, factor: float) -> np.ndarray:
    """Moves each pixel away from (factor > 1) or towards its grey: 0 is a grey picture, 1 changes nothing."""
    out = np.empty_like(frames)
    size = frames[0].size
    levels, grey, work, spread = (np.empty(size, np.uint16) for _ in range(4))
    is_red = np.tile(np.array([0xFFFF, 0, 0], np.uint16), size // 3)
    amplify = _Amplifier(size, factor - 1)
    for frame, target in zip(frames, out):
        np.copyto(levels, frame.reshape(-1))
        # The weighted sum of each value and its two successors is the pixel's grey where the value is a red one: all
        # others are blanked and filled with the grey of their pixel. Long vectors, no stride of 3.
        np.multiply(levels, _LUMA[0], out=grey)
        for channel in (1, 2):
            np.multiply(levels, _LUMA[channel], out=work)
            np.add(grey[:-channel], work[channel:], out=grey[:-channel])
        np.add(grey, 128, out=grey)
        np.right_shift(grey, 8, out=grey)
        np.bitwise_and(grey, is_red, out=grey)
        np.copyto(spread, grey)
        for channel in (1, 2):
            np.add(spread[channel:], grey[:-channel], out=spread[channel:])
        levels, spread = levels.view(np.int16), spread.view(np.int16)
        np.subtract(levels, spread, out=spread)
        amplify(levels, spread, target.reshape(-1))
        levels, spread = levels.view(np.uint16), spread.view(np.uint16)
    return out


def sharpness(frames: np.ndarray, factor: float) -> np.ndarray:
    """Moves each pixel away from (factor > 1) or towards the mean of its surroundings; the border stays as it is."""
    num_frames, height, width, _ = frames.shape
    out = frames.copy()
    if min(height, width) < 3:
        return out
    rows, targets = (array.reshape(num_frames, height, width * 3) for array in (frames, out))
    levels = np.empty((height, width * 3), np.int16)
    columns = np.empty((height - 2, width * 3), np.int16)
    sums = np.empty((height - 2, width * 3 - 6), np.int16)
    inner = np.empty_like(sums)
    amplify = _Amplifier(sums.shape, (factor - 1) / _SMOOTH_SUM)
    for row, target in zip(rows, targets):
        np.copyto(levels, row)
        np.add(levels[:-2], levels[1:-1], out=columns)
        np.add(columns, levels[2:], out=columns)
        np.add(columns[:, :-6], columns[:, 3:-3], out=sums)
        np.add(sums, columns[:, 6:], out=sums)  # of 3 x 3 pixels
        np.copyto(inner, levels[1:-1, 3:-3])
        np.multiply(inner, 9, out=columns[:, 3:-3])
        np.subtract(columns[:, 3:-3], sums, out=sums)  # 13 x (pixel - smoothed pixel)
        amplify(inner, sums, target[1:-1, 3:-3])
    return out


class _Amplifier:
    """levels + factor * difference, rounded down and clipped to 0..255, on buffers of one shape."""

    def __init__(self, shape: int | tuple[int, ...], factor: float):
        self._factor = np.int32(round(factor * 65536))
        self._wide = np.empty(shape, np.int32)
        self._narrow = np.empty(shape, np.int16)

    def __call__(self, levels: np.ndarray, difference: np.ndarray, target: np.ndarray) -> None:
        """int16 levels and difference; the result goes to uint8 `target`."""
        np.copyto(self._wide, difference)
        np.multiply(self._wide, self._factor, out=self._wide)
        np.right_shift(self._wide, 16, out=self._wide)
        np.copyto(self._narrow, self._wide, casting="unsafe")
        np.add(self._narrow, levels, out=self._narrow)
        np.clip(self._narrow, 0, 255, out=self._narrow)
        np.copyto(target, self._narrow, casting="unsafe")


def shift_hue(frames: np.ndarray, turn: float) -> np.ndarray:
    """Turns the hue circle by `turn` (-0.5 to 0.5 of a full turn), through PIL's HSV as torchvision does."""
    from PIL import Image

    out = np.empty_like(frames)
    steps = int(turn * 255) % 256
    table = [(level + steps) % 256 for level in range(256)] + list(range(256)) * 2
    for frame, target in zip(frames, out):
        image: Image.Image = as_image(frame).convert("HSV").point(table)
        target[...] = image.convert("RGB")
    return out


def as_image(frame: np.ndarray):
    """A PIL image of uint8 (H, W, 3)."""
    from PIL import Image

    return Image.frombuffer("RGB", (frame.shape[1], frame.shape[0]), frame, "raw", "RGB", 0, 1)
