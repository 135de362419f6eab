"""Videos for benchmarks of decoders: moving textured scenes with the noise of a sensor, encoded as Kinetics clips are.

What a decoder costs follows from the bits, from the share of B-frames and from the share of blocks that the encoder
skips. So the pictures have what decides them in camera footage: textures and edges at all scales (discs that cover each
other, "dead leaves", with sizes by a power law: Lee, Mumford and Huang 2001), a hand-held camera, things that move and
turn on their own, and noise that no prediction removes.

The pictures depend on the seed and on the versions of numpy and torch alone. The files may differ by some bytes all the
same: x264's macroblock tree is not exactly repeatable (seen with AVX-512, equal frames, one thread, one process), and
without it the bits would not be typical.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F

from revvideo.errors import InputError
from revvideo.paths import replace_file

# Mbit/s of a clip of the default size: that of Kinetics clips which were scaled to 340x256 with crf 23.
TYPICAL_MBIT = (0.3, 0.8)

PIXELS_OF_LEAF = 300  # of the picture, for each disc of `dead_leaves`


@dataclass(frozen=True)
class Content:
    """What is seen, and how much of it.

    Attributes:
        width, height: pixels, both even.
        fps: frames per second.
        num_frames: of a video.
        cuts: places where the scene changes at once.
        noise: standard deviation of the sensor's noise, in grey levels of 255.
        num_things: textured discs that move on their own.
    """

    width: int = 340
    height: int = 256
    fps: int = 30
    num_frames: int = 300
    cuts: int = 0
    noise: float = 1.8
    num_things: int = 4

    def __post_init__(self):
        if self.width < 32 or self.height < 32 or self.width % 2 or self.height % 2:
            raise InputError(f"a picture of {self.width}x{self.height} was asked for; expected even sides from 32 on")
        if not 0 <= self.cuts < self.num_frames:
            raise InputError(f"{self.cuts} cuts in {self.num_frames} frames were asked for; expected fewer cuts")


@dataclass(frozen=True)
class GeneratedVideo:
    """A file of `write_videos`.

    Attributes:
        path: of the file.
        gop: largest distance of key frames that the encoder was given.
        mbit_per_s: size of the file over its duration.
    """

    path: Path
    gop: int
    mbit_per_s: float


def generate_frames(content: Content, seed: int) -> Iterator[np.ndarray]:
    """The frames of one video, one after the other.

    Yields:
        uint8 (height * 3 / 2, width): the planes of yuv420p one after the other, for `VideoFrame.from_ndarray`.
    """
    rng = np.random.default_rng([seed, 0])
    cuts = set(rng.choice(np.arange(1, content.num_frames), content.cuts, replace=False).tolist())
    scene = _Scene(content, rng)
    first = 0
    for t in range(content.num_frames):
        if t in cuts:
            scene, first = _Scene(content, rng), t
        yield _expose(scene.picture((t - first) / content.fps), content.noise, rng)


def _expose(picture: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Add the sensor's noise to a float32 (3, H, W) YUV picture and store it as yuv420p."""
    luma = picture[0] + noise * rng.standard_normal(picture.shape[1:], np.float32)
    chroma = picture[1:].reshape(2, picture.shape[1] // 2, 2, picture.shape[2] // 2, 2).mean((2, 4))
    chroma = chroma + 0.5 * noise * rng.standard_normal(chroma.shape, np.float32)
    planes = np.concatenate([luma.ravel(), chroma.ravel()])
    return np.clip(planes + 0.5, 16, 240).astype(np.uint8).reshape(-1, picture.shape[2])


class _Scene:
    """A background under a hand-held camera, and things in front of it."""

    MARGIN = 48  # pixels of the background around the picture: how far the camera may move

    def __init__(self, content: Content, rng: np.random.Generator):
        self.height, self.width = content.height, content.width
        size = (content.height + 2 * self.MARGIN, content.width + 2 * self.MARGIN)
        self.background = torch.from_numpy(dead_leaves(*size, rng))[None]  # (1, 3, H + 2 M, W + 2 M)
        self.camera = _Path(rng, reach=0.7 * self.MARGIN, hertz=(0.03, 0.4), tremble=0.25)
        self.things = [_Thing(content, rng) for _ in range(content.num_things)]
        y, x = np.mgrid[0 : content.height, 0 : content.width].astype(np.float32)
        self.pixels = torch.from_numpy(np.stack([x, y], -1))[None]  # (1, H, W, 2)

    def picture(self, seconds: float) -> np.ndarray:
        """float32 (3, H, W): Y, U, V in grey levels."""
        x, y = self.camera(seconds)
        at = self.pixels + torch.tensor([self.MARGIN + x, self.MARGIN + y], dtype=torch.float32)
        picture = _sample(self.background, at)[0]
        for thing in self.things:
            thing.paint(picture, seconds, -0.5 * x, -0.5 * y)
        return picture.numpy()


class _Thing:
    """A textured disc that sways, turns and breathes."""

    def __init__(self, content: Content, rng: np.random.Generator):
        self.radius = float(rng.uniform(0.09, 0.22) * content.height)
        side = 2 * math.ceil(1.1 * self.radius) + 1
        self.texture = torch.from_numpy(dead_leaves(side, side, rng))[None]
        self.home = rng.uniform(0.2, 0.8, 2) * (content.width, content.height)
        self.path = _Path(rng, reach=float(rng.uniform(0.05, 0.25) * content.width), hertz=(0.1, 0.9))
        self.turn = _Path(rng, reach=float(rng.uniform(0.0, 0.7)), hertz=(0.2, 1.0))  # radians
        self.squash = _Path(rng, reach=0.12, hertz=(0.3, 1.2))

    def paint(self, picture: torch.Tensor, seconds: float, shift_x: float, shift_y: float) -> None:
        """Draw it into float32 (3, H, W) in place, with a soft edge of a pixel."""
        x, y = self.path(seconds) + self.home + (shift_x, shift_y)
        reach = math.ceil(1.4 * self.radius)
        top, left = max(int(y) - reach, 0), max(int(x) - reach, 0)
        box = picture[:, top : max(int(y) + reach, 0), left : max(int(x) + reach, 0)]
        if 0 in box.shape:
            return
        angle, squash = self.turn(seconds)[0], 1 + self.squash(seconds)[0]
        ys = torch.arange(box.shape[1], dtype=torch.float32)[:, None] + float(top - y)
        xs = torch.arange(box.shape[2], dtype=torch.float32)[None] + float(left - x)
        u = (math.cos(angle) * xs + math.sin(angle) * ys) * squash
        v = (math.cos(angle) * ys - math.sin(angle) * xs) / squash
        cover = (self.radius - torch.hypot(u, v)).add_(0.5).clamp_(0, 1)
        middle = (self.texture.shape[-1] - 1) / 2
        box.lerp_(_sample(self.texture, torch.stack([u + middle, v + middle], -1)[None])[0], cover)


class _Path:
    """A smooth random movement in the plane: a few slow oscillations, and the tremble of a hand."""

    def __init__(self, rng: np.random.Generator, *, reach: float, hertz: tuple[float, float], tremble: float = 0.0):
        self.hertz = np.concatenate([rng.uniform(*hertz, (3, 2)), rng.uniform(3, 7, (1, 2))])
        self.phase = rng.uniform(0, 2 * math.pi, (4, 2))
        slow = rng.dirichlet((2, 2, 2), 2).T * reach
        self.reach = np.concatenate([slow, np.full((1, 2), tremble)])

    def __call__(self, seconds: float) -> np.ndarray:
        """float64 (2,): x and y, each within the reach and the tremble."""
        return (self.reach * np.sin(2 * math.pi * self.hertz * seconds + self.phase)).sum(0)


def _sample(texture: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Bilinear samples of (1, 3, H, W) at pixel coordinates (1, h, w, 2), x first: (1, 3, h, w)."""
    size = torch.tensor([texture.shape[-1] - 1, texture.shape[-2] - 1], dtype=torch.float32)
    return F.grid_sample(texture, at / size * 2 - 1, mode="bilinear", padding_mode="border", align_corners=True)


def dead_leaves(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A still picture with the statistics of natural ones: float32 (3, height, width), Y, U, V in grey levels.

    Discs whose radii r are distributed as 1 / r^3 cover each other; each has a colour, a shading and a texture.
    """
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    texture = _pink_noise(height, width, rng)
    picture = np.empty((3, height, width), np.float32)
    picture[:] = (120 + 12 * texture, np.full_like(y, 124), np.full_like(y, 131))
    least, largest = 3.0, 0.5 * min(height, width)
    num_leaves = round(height * width / PIXELS_OF_LEAF)
    radii = 1 / np.sqrt(rng.uniform(1 / largest**2, 1 / least**2, num_leaves))
    for radius in np.sort(radii)[::-1]:  # small ones last, so that they are seen
        centre_y, centre_x = rng.uniform(0, height), rng.uniform(0, width)
        rows = slice(max(int(centre_y - radius), 0), int(centre_y + radius) + 2)
        columns = slice(max(int(centre_x - radius), 0), int(centre_x + radius) + 2)
        down, right = (y[rows, columns] - centre_y) / radius, (x[rows, columns] - centre_x) / radius
        cover = np.clip((1 - np.hypot(down, right)) * radius + 0.5, 0, 1)
        slope_y, slope_x = rng.normal(0, 12, 2)
        grey = rng.uniform(40, 200) + slope_y * down + slope_x * right
        grey = grey + rng.uniform(0, 12) * texture[rows, columns]
        for plane, value in enumerate((grey, rng.normal(126, 10), rng.normal(130, 10))):
            box = picture[plane, rows, columns]
            box += cover * (value - box)
    return picture


def _pink_noise(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """float32 (height, width) with amplitudes of 1 / frequency, mean 0, standard deviation 1."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequency = np.maximum(np.hypot(fy, fx), 1 / max(height, width))
    waves = rng.standard_normal((2, *frequency.shape)) / frequency
    noise = np.fft.irfft2(waves[0] + 1j * waves[1], s=(height, width))
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


def encode_x264(path: Path, frames: Sequence[np.ndarray], *, fps: int, gop: int, crf: int = 23) -> None:
    """Write yuv420p frames (see `generate_frames`) as H.264: preset medium, 3 B-frames, x264's own scene-cut detection.

    Args:
        path: .mp4 file; it appears when it is complete.
        gop: largest distance of key frames.
        crf: quality.
    """

    def write(temporary: Path) -> None:
        with av.open(str(temporary), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=fps)
            context = stream.codec_context
            context.thread_count, context.gop_size, context.max_b_frames = 1, gop, 3
            stream.options = {"preset": "medium", "crf": str(crf)}
            stream.pix_fmt = "yuv420p"
            stream.height, stream.width = frames[0].shape[0] * 2 // 3, frames[0].shape[1]
            for number, planes in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
                frame.pts, frame.time_base = number, Fraction(1, fps)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())

    replace_file(path, write)


def write_videos(
    folder: Path,
    *,
    count: int = 4,
    gops: Iterable[int] = (250, 30),
    content: Content = Content(),
    seed: int = 0,
    on_video: Callable[[], object] = lambda: None,
) -> list[GeneratedVideo]:
    """Write `count` videos, each with every distance of key frames: the same pictures.

    Every second video has the content's cuts, the others have none: in Kinetics both are common.

    Args:
        folder: it must exist; files of these names are written over.
        count: videos.
        gops: largest distances of key frames.
        content: of all videos.
        seed: of the first video; the next ones count on.
        on_video: called after each file.
    """
    videos = []
    for number in range(count):
        plan = Content(**vars(content) | {"cuts": content.cuts if number % 2 else 0})
        frames = list(generate_frames(plan, seed + number))
        for gop in gops:
            path = folder / f"generated_{seed + number}_gop{gop}.mp4"
            encode_x264(path, frames, fps=plan.fps, gop=gop)
            mbit = path.stat().st_size * 8e-6 * plan.fps / plan.num_frames
            videos.append(GeneratedVideo(path, gop, mbit))
            on_video()
    return videos
