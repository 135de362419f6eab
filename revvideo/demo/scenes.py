"""Scenes of the demo data set: one textured shape over a drifting textured background, and how they become frames.

The eight classes are four pairs, and the two classes of a pair are each other's time reversal. A scene is always drawn
for the FIRST class of its pair; a video of the second class is such a scene rendered backwards (`render_class`). So
both classes share one distribution of unordered frames, and only the order of the frames tells them apart.

A still frame shall say as little as possible about the pair, too. Every draw therefore takes the same random numbers in
the same order whatever the pair: travel, turn, growth, pose at mid-time, shape, texture, colours. Only then does the
pair decide which one of the motions is kept. All pairs so share one distribution of frames half-way through the video.

Lengths are in frame widths, x to the right, y down, the frame is [0, 1] x [0, 1]; positive angles are clockwise on the
screen. numpy only, and no BLAS: the bytes do not depend on a number of threads.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

CLASS_NAMES: tuple[str, ...] = (
    "moves_left",
    "moves_right",
    "moves_up",
    "moves_down",
    "turns_clockwise",
    "turns_anticlockwise",
    "grows",
    "shrinks",
)  # index = label; classes 2k and 2k + 1 are a time-reversal pair
NUM_PAIRS = len(CLASS_NAMES) // 2

NUM_FRAMES = 90
FRAME_SIZE = 112

# Ranges over the whole video, from its first frame to its last.
TRAVEL = (0.35, 0.60)  # widths
TURN_DEGREES = (90.0, 180.0)
GROWTH = (2.0, 3.0)  # largest diameter / smallest diameter
DIAMETER = (0.36, 0.44)  # of the circumscribed circle at mid-time, widths
MAX_DRIFT = 0.15  # of the background, widths
MAX_OVERHANG = 0.02  # of the circumscribed circle over the frame's border, widths

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
TEXTURES = ("stripes", "checks", "halves")
NUM_BACKGROUND_WAVES = 5


def partner(label: int) -> int:
    """The label whose videos are this one's run backwards."""
    return label ^ 1


# --- shapes -----------------------------------------------------------------------------------------------------------


def _half_planes(vertices) -> tuple[tuple[float, float, float], ...]:
    """Convex polygon (counter-clockwise in x, y) -> (nx, ny, offset) an edge; inside is nx * x + ny * y <= offset."""
    planes = []
    for (x0, y0), (x1, y1) in zip(vertices, [*vertices[1:], vertices[0]], strict=True):
        length = math.hypot(x1 - x0, y1 - y0)
        nx, ny = (y1 - y0) / length, (x0 - x1) / length
        planes.append((nx, ny, nx * x0 + ny * y0))
    return tuple(planes)


def _box(x0: float, y0: float, x1: float, y1: float):
    return _half_planes([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _arc(first_degrees: float, last_degrees: float, count: int, height: float = 1.0):
    angles = np.radians(np.linspace(first_degrees, last_degrees, count))
    return _half_planes([(math.cos(a), height * math.sin(a)) for a in angles])


# A shape is a bulky union of convex polygons within the unit circle. None of them looks the same after a quarter turn.
SHAPES = {
    "bar": (_box(-0.86, -0.5, 0.86, 0.5),),
    "ellipse": (_arc(0, 360 * 15 / 16, 16, height=0.62),),
    "dome": (_arc(-115, 115, 12),),
    "triangle": (_half_planes([(1.0, 0.0), (-0.62, 0.78), (-0.62, -0.78)]),),
    "kite": (_half_planes([(1.0, 0.0), (-0.1, 0.72), (-0.8, 0.0), (-0.1, -0.72)]),),
    "ell": (_box(-0.7, -0.7, 0.0, 0.7), _box(-0.7, 0.0, 0.7, 0.7)),
    "tee": (_box(-0.68, -0.72, -0.02, 0.72), _box(-0.68, -0.32, 0.94, 0.32)),
    "cross": (_box(-0.94, -0.32, 0.94, 0.32), _box(-0.34, -0.72, 0.34, 0.72)),
}


# --- drawing a scene --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wave:
    """One plane wave of the background: colour * cos(2 pi (fx * x + fy * y) + phase)."""

    frequency: tuple[float, float]  # cycles per width
    phase: float
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """Everything that is seen, as numbers. `centre`, `angle` and `diameter` hold at mid-time."""

    pair_index: int
    shape: str
    centre: tuple[float, float]
    angle: float  # radians
    diameter: float  # of the circumscribed circle, widths

    travel: tuple[float, float]  # widths, first frame to last; (0, 0) if the shape does not move
    turn: float  # radians, first frame to last; 0 if it does not turn
    growth: float  # last diameter / first diameter; 1 if it does not grow

    texture: str
    texture_angle: float  # radians, relative to the shape
    texture_cycles: float  # per diameter
    texture_phase: float
    colours: tuple[tuple[float, float, float], tuple[float, float, float]]  # RGB in [0, 1]

    background_colour: tuple[float, float, float]
    background_waves: tuple[Wave, ...]
    drift: tuple[float, float]  # of the background, widths, first frame to last

    def pose(self, time: float) -> tuple[float, float, float, float]:
        """(centre x, centre y, angle, diameter) at `time`, 0 at the first frame and 1 at the last."""
        x = self.centre[0] + (time - 0.5) * self.travel[0]
        y = self.centre[1] + (time - 0.5) * self.travel[1]
        return x, y, self.angle + (time - 0.5) * self.turn, self.diameter * self.growth ** (time - 0.5)


def _hue(rng: np.random.Generator) -> np.ndarray:
    """A random direction of RGB that leaves the luma as it is."""
    hue = rng.uniform(0, 2 * math.pi)
    direction = np.cos(hue - np.array([0.0, 2.0, 4.0]) * math.pi / 3)
    return direction - (LUMA * direction).sum()


def _colour(rng: np.random.Generator, luma: float, chroma: float) -> np.ndarray:
    """A random hue of exactly this luma; the chroma is lowered where RGB would leave [0, 1]."""
    direction = _hue(rng)
    room = min(np.where(direction > 0, 1 - luma, luma) / np.maximum(np.abs(direction), 1e-6))
    return luma + min(chroma, room) * direction


def _draw_colours(rng: np.random.Generator):
    """Shape colours, background colour and waves. The shape is brighter everywhere, or (every other scene) darker."""
    background = _colour(rng, rng.uniform(0.14, 0.32), rng.uniform(0.05, 0.20))
    colours = [_colour(rng, rng.uniform(*span), rng.uniform(0.15, 0.40)) for span in ((0.58, 0.72), (0.82, 0.95))]
    waves = []
    for _ in range(NUM_BACKGROUND_WAVES):
        direction, cycles = rng.uniform(0, 2 * math.pi), rng.uniform(1.0, 3.2)
        colour = rng.uniform(0.015, 0.035) + rng.uniform(0.0, 0.05) * _hue(rng)
        waves.append((cycles * math.cos(direction), cycles * math.sin(direction), rng.uniform(0, 2 * math.pi), colour))
    if rng.random() < 0.5:
        background, colours = 1 - background, [1 - colour for colour in colours]
    return (
        tuple(tuple(map(float, colour)) for colour in colours),
        tuple(map(float, background)),
        tuple(Wave((fx, fy), phase, tuple(map(float, colour))) for fx, fy, phase, colour in waves),
    )


def draw_scene(rng: np.random.Generator, pair_index: int) -> Scene:
    """A random scene of the first class of pair `pair_index` (0 left, 1 up, 2 clockwise, 3 grows).

    From equal generators the scenes of all pairs differ in `pair_index`, `travel`, `turn` and `growth` alone.
    """
    if not 0 <= pair_index < NUM_PAIRS:
        raise ValueError(f"pair_index is {pair_index}, expected 0 to {NUM_PAIRS - 1}")
    travel = rng.uniform(*TRAVEL)
    turn = math.radians(rng.uniform(*TURN_DEGREES))
    growth = rng.uniform(*GROWTH)

    # The same room in x and in y for every pair: what a shape with this travel has along its way.
    diameter = rng.uniform(*DIAMETER)
    room = max(0.5 + MAX_OVERHANG - travel / 2 - diameter / 2, 0.0)
    centre = (0.5 + rng.uniform(-room, room), 0.5 + rng.uniform(-room, room))

    drift_direction, drift_length = rng.uniform(0, 2 * math.pi), rng.uniform(0, MAX_DRIFT)
    shape = str(rng.choice(sorted(SHAPES)))
    texture = str(rng.choice(TEXTURES))
    colours, background_colour, background_waves = _draw_colours(rng)
    still = Scene(
        pair_index=pair_index,
        shape=shape,
        centre=centre,
        angle=rng.uniform(0, 2 * math.pi),
        diameter=diameter,
        travel=(0.0, 0.0),
        turn=0.0,
        growth=1.0,
        texture=texture,
        texture_angle=rng.uniform(0, 2 * math.pi),
        texture_cycles=rng.uniform(1.2, 2.2),
        texture_phase=rng.uniform(0, 2 * math.pi),
        colours=colours,
        background_colour=background_colour,
        background_waves=background_waves,
        drift=(drift_length * math.cos(drift_direction), drift_length * math.sin(drift_direction)),
    )
    motions = ({"travel": (-travel, 0.0)}, {"travel": (0.0, -travel)}, {"turn": turn}, {"growth": growth})
    return replace(still, **motions[pair_index])


# --- rendering --------------------------------------------------------------------------------------------------------
# Frames are float32 in "levels": 255 * RGB + 0.5, so that cutting the fraction off rounds to the nearest uint8.


def _levels(colour) -> np.ndarray:
    return np.array(colour, dtype=np.float32) * np.float32(255) + np.float32(0.5)


def _background_tile(scene: Scene, size: int, margin: int) -> np.ndarray:
    """The background, `margin` pixels larger than the frame on each side: levels (S, S, 3), S = size + 2 margin."""
    position = ((np.arange(-margin, size + margin) + 0.5) / size).astype(np.float32)
    tile = np.empty((len(position), len(position), 3), dtype=np.float32)
    tile[:] = scene.background_colour
    for wave in scene.background_waves:
        fx, fy = (2 * math.pi * f for f in wave.frequency)
        ripple = np.cos(fx * position[None, :] + (fy * position[:, None] + np.float32(wave.phase)))
        tile += ripple[..., None] * np.array(wave.colour, dtype=np.float32)
    return _levels(np.clip(tile, 0, 1, out=tile))


def _shifted(tile: np.ndarray, x: float, y: float, size: int) -> np.ndarray:
    """Bilinear window of the tile whose corner lies at (x, y) pixels: float32 (size, size, 3)."""
    column, row = math.floor(x), math.floor(y)
    right, down = np.float32(x - column), np.float32(y - row)
    rows = tile[row : row + size + 1, column : column + size + 1]
    rows = rows[:-1] + down * (rows[1:] - rows[:-1])  # (size, size + 1, 3)
    return rows[:, :-1] + right * (rows[:, 1:] - rows[:, :-1])


def _signed_distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Distance to the shape's edge, negative inside, in circumscribed radii (a lower bound at corners)."""
    union = None
    for planes in SHAPES[shape]:
        convex = None
        for nx, ny, offset in planes:
            edge = np.float32(nx) * u + (np.float32(ny) * v - np.float32(offset))
            convex = edge if convex is None else np.maximum(convex, edge, out=convex)
        union = convex if union is None else np.minimum(union, convex, out=union)
    return union


def _texture(scene: Scene, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Share of the second colour in [0, 1]. u, v are the shape's coordinates: the texture turns and grows with it."""
    cosine, sine = np.float32(math.cos(scene.texture_angle)), np.float32(math.sin(scene.texture_angle))
    along, phase = cosine * u + sine * v, np.float32(scene.texture_phase)
    if scene.texture == "halves":
        return np.clip(np.float32(0.5) + np.float32(3) * (along - np.float32(0.2) * np.sin(phase)), 0, 1)
    frequency = np.float32(math.pi * scene.texture_cycles)  # a diameter is 2 radii
    wave = np.sin(frequency * along + phase)
    if scene.texture == "checks":
        # Half the frequency across: a lattice that a quarter turn changes.
        wave *= np.sin(np.float32(0.5) * frequency * (cosine * v - sine * u) + phase)
    return np.clip(np.float32(0.5) + np.float32(1.6) * wave, 0, 1)


def _paint_shape(frame: np.ndarray, scene: Scene, time: float) -> None:
    """Blend the shape into the frame (levels, (size, size, 3)), within its bounding box, edges one pixel soft."""
    size = frame.shape[0]
    x, y, angle, diameter = scene.pose(time)
    x, y, radius = x * size, y * size, diameter * size / 2
    left, right = max(math.floor(x - radius) - 1, 0), min(math.ceil(x + radius) + 1, size)
    top, bottom = max(math.floor(y - radius) - 1, 0), min(math.ceil(y + radius) + 1, size)
    dx = ((np.arange(left, right) + (0.5 - x)) / radius).astype(np.float32)[None, :]
    dy = ((np.arange(top, bottom) + (0.5 - y)) / radius).astype(np.float32)[:, None]
    cosine, sine = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    u, v = cosine * dx + sine * dy, cosine * dy - sine * dx  # the shape's own coordinates

    alpha = np.clip(np.float32(0.5) - np.float32(radius) * _signed_distance(scene.shape, u, v), 0, 1)
    first, second = map(_levels, scene.colours)
    colour = first + _texture(scene, u, v)[..., None] * (second - first)  # (h, w, 3)
    patch = frame[top:bottom, left:right]
    patch += alpha[..., None] * (colour - patch)


def render(scene: Scene, num_frames: int = NUM_FRAMES, size: int = FRAME_SIZE) -> np.ndarray:
    """The scene forwards in time: uint8 (num_frames, size, size, 3) RGB."""
    margin = math.ceil(MAX_DRIFT / 2 * size) + 1
    tile = _background_tile(scene, size, margin)
    video = np.empty((num_frames, size, size, 3), dtype=np.uint8)
    for index in range(num_frames):
        time = index / max(num_frames - 1, 1)
        x, y = (margin - (time - 0.5) * length * size for length in scene.drift)
        frame = _shifted(tile, x, y, size)
        _paint_shape(frame, scene, time)
        video[index] = frame
    return video


def render_class(
    rng: np.random.Generator, label: int, num_frames: int = NUM_FRAMES, size: int = FRAME_SIZE
) -> np.ndarray:
    """A fresh video of class `label`: uint8 (num_frames, size, size, 3). Odd labels run backwards in time."""
    video = render(draw_scene(rng, label // 2), num_frames, size)
    return video[::-1] if label % 2 else video
