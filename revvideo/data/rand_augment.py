"""RandAugment of uint8 clips: the policy strings of timm and PySlowFast, the same operations for all frames.

Source: Cubuk et al. 2020 (RandAugment), with the choices of timm and PySlowFast (`datasets/rand_augment.py`): the
operations are drawn with replacement, each is then applied with probability 0.5 at a magnitude of gauss(m, mstd)
clipped to 0..10, and an argument that has a direction gets a random sign. Decisions are drawn in PySlowFast's order.

The pixels are worked on in `colour_operations` and `geometric_operations`; here operations on grey levels that follow
each other are merged into one table.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from revvideo.data import colour_operations, geometric_operations
from revvideo.errors import InputError

OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)

# How often each operation is drawn with `w0`, in the order of OPERATIONS; without it they are equally likely.
_WEIGHTS_0 = (0.025, 0.005, 0.0, 0.3, 0.0, 0.005, 0.005, 0.025, 0.005, 0.005, 0.025, 0.2, 0.2, 0.1, 0.1)

_TOP_MAGNITUDE = 10.0
_UNIFORM_STD = 100.0  # timm: mstd above this means a magnitude that is uniform in 0..m
_KEYS = {
    "m": r"\d+",
    "n": r"\d+",
    "w": r"0",
    "mstd": r"\d+(\.\d+)?",
    "inc": r"\d+",
    "mmax": r"\d+",
    "p": r"\d+(\.\d+)?",
}


@dataclass(frozen=True)
class RandAugmentPolicy:
    """What a policy string says.

    Attributes:
        magnitude: mean strength, 0 to 10 (`m`).
        num_layers: operations drawn for a clip (`n`).
        magnitude_std: standard deviation of the strength; above 100 it is uniform in 0..magnitude (`mstd`).
        increasing: posterize, solarize and the enhancements get stronger with the magnitude (`inc`); otherwise, as in
            the paper, magnitude 10 is their weakest (posterize, solarize) or brightest end.
        prob: how often a drawn operation is applied (`p`).
        max_magnitude: the strength is clipped to 0..max_magnitude (`mmax`).
        weights: how often each of OPERATIONS is drawn, or None for equally often (`w`).
    """

    magnitude: float = 10.0
    num_layers: int = 2
    magnitude_std: float = 0.0
    increasing: bool = False
    prob: float = 0.5
    max_magnitude: float = _TOP_MAGNITUDE
    weights: tuple[float, ...] | None = None


def parse_policy(text: str) -> RandAugmentPolicy:
    """Read a policy such as `rand-m7-n4-mstd0.5-inc1`.

    Sections after `rand`: m magnitude (default 10), n layers (2), mstd (0), w0 (timm's weights), inc, mmax (10),
    p (0.5). As in PySlowFast and timm any `inc` section switches the increasing set on, `inc0` too.

    Raises:
        InputError: another kind of policy, an unknown or repeated section, a value out of range.
    """
    kind, *sections = text.split("-")
    if kind != "rand":
        raise _bad(text, f"{kind!r} is no kind of policy that is known; only 'rand' is")
    values: dict[str, str] = {}
    for section in sections:
        match = re.fullmatch(r"([a-z]+)([\d.]+)", section)
        if match is None or match[1] not in _KEYS:
            raise _bad(text, f"section {section!r} is not one of {', '.join(_KEYS)} followed by a number")
        key, value = match.groups()
        if re.fullmatch(_KEYS[key], value) is None:
            raise _bad(text, f"section {section!r} has a value that {key} cannot have")
        if key in values:
            raise _bad(text, f"section {key} is there twice")
        values[key] = value
    policy = RandAugmentPolicy(
        magnitude=float(values.get("m", 10)),
        num_layers=int(values.get("n", 2)),
        magnitude_std=float(values.get("mstd", 0)),
        increasing="inc" in values,
        prob=float(values.get("p", 0.5)),
        max_magnitude=float(values.get("mmax", _TOP_MAGNITUDE)),
        weights=_WEIGHTS_0 if "w" in values else None,
    )
    if policy.num_layers < 1:
        raise _bad(text, "n is 0; at least one operation is needed")
    if not 0 <= policy.prob <= 1:
        raise _bad(text, f"p is {policy.prob}; a probability lies between 0 and 1")
    if policy.max_magnitude > _TOP_MAGNITUDE:
        raise _bad(text, f"mmax is {policy.max_magnitude:g}; magnitudes end at 10")
    return policy


def _bad(text: str, reason: str) -> InputError:
    return InputError(f"AUG.AA_TYPE is {text!r}: {reason}. Expected something like 'rand-m7-n4-mstd0.5-inc1'")


@dataclass(frozen=True)
class Operation:
    """One drawn operation.

    Attributes:
        name: one of OPERATIONS.
        argument: degrees (Rotate), bits kept (Posterize), threshold (Solarize), levels (SolarizeAdd), factor (Color to
            Sharpness), slope (ShearX, ShearY), share of the width or height (TranslateXRel, TranslateYRel); else None.
        interpolation: of the geometric operations.
    """

    name: str
    argument: float | int | None
    interpolation: str


def argument_of(name: str, magnitude: float, increasing: bool, generator: np.random.Generator) -> float | int | None:
    """The argument (see `Operation`) of an operation at a magnitude of 0 to 10; the sign is random where it has one."""
    level = magnitude / _TOP_MAGNITUDE

    def signed(value: float) -> float:
        return -value if generator.random() > 0.5 else value

    if name == "Rotate":
        return signed(level * 30.0)
    if name == "Posterize":
        return 4 - int(level * 4) if increasing else int(level * 4)
    if name == "Solarize":
        return 256 - int(level * 256) if increasing else int(level * 256)
    if name == "SolarizeAdd":
        return int(level * 110)
    if name in ("Color", "Contrast", "Brightness", "Sharpness"):
        return 1.0 + signed(level * 0.9) if increasing else level * 1.8 + 0.1
    if name in ("ShearX", "ShearY"):
        return signed(level * 0.3)
    if name in ("TranslateXRel", "TranslateYRel"):
        return signed(level * 0.45)
    return None


@dataclass(frozen=True)
class RandAugment:
    """RandAugment of one clip: `(clip uint8 (T, 3, H, W), generator) -> clip`; the input is not changed.

    Attributes:
        policy: what `parse_policy` gives.
        fill: RGB levels of what comes from outside the picture: grey for video, the mean colour for pictures.
        interpolation: "nearest", "bilinear", "bicubic", or "random": bilinear or bicubic, drawn for each operation.
    """

    policy: RandAugmentPolicy
    fill: Sequence[int] = (128, 128, 128)
    interpolation: str = "bilinear"

    def __post_init__(self):
        if self.interpolation not in (*geometric_operations.INTERPOLATIONS, "random"):
            raise InputError(
                f"AUG.INTERPOLATION is {self.interpolation!r}; expected nearest, bilinear, bicubic or random"
            )

    def draw(self, generator: np.random.Generator) -> list[Operation]:
        """The operations of one clip, in order."""
        policy = self.policy
        drawn = generator.choice(len(OPERATIONS), policy.num_layers, replace=True, p=policy.weights)
        plan = []
        for name in (OPERATIONS[int(i)] for i in drawn):
            if policy.prob < 1.0 and generator.random() > policy.prob:
                continue
            magnitude = policy.magnitude
            if policy.magnitude_std > _UNIFORM_STD:
                magnitude = generator.uniform(0.0, magnitude)
            elif policy.magnitude_std > 0:
                magnitude = generator.normal(magnitude, policy.magnitude_std)
            magnitude = min(policy.max_magnitude, max(0.0, float(magnitude)))
            argument = argument_of(name, magnitude, policy.increasing, generator)
            plan.append(Operation(name, argument, self._drawn_interpolation(name, generator)))
        return plan

    def _drawn_interpolation(self, name: str, generator: np.random.Generator) -> str:
        if self.interpolation != "random":
            return self.interpolation
        if name == "Rotate" or name.startswith(("Shear", "Translate")):
            return ("bilinear", "bicubic")[int(generator.integers(0, 2))]
        return "bilinear"

    def __call__(self, clip: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        """uint8 (T, 3, H, W) -> the same, with channels-last strides."""
        return self.apply(clip, self.draw(generator))

    def apply(self, clip: torch.Tensor, plan: Sequence[Operation]) -> torch.Tensor:
        """Carry out drawn operations; the clip itself if there are none."""
        if clip.dtype != torch.uint8 or clip.dim() != 4 or clip.shape[1] != 3:
            raise ValueError(f"RandAugment takes uint8 (T, 3, H, W), not {clip.dtype} {tuple(clip.shape)}")
        if not plan:
            return clip
        frames = np.ascontiguousarray(clip.permute(0, 2, 3, 1).numpy())  # (T, H, W, 3)
        tables = None  # of the operations on grey levels that are not carried out yet
        for operation in plan:
            table = _table(operation)
            if table is not None:
                tables = table if tables is None else table[tables]
                continue
            if tables is not None:
                frames, tables = colour_operations.apply_tables(frames, tables), None
            if operation.name == "Contrast":  # a table, but one that depends on what was done before
                tables = colour_operations.contrast_tables(frames, operation.argument)
            else:
                frames = _carry_out(frames, operation, self.fill)
        if tables is not None:
            frames = colour_operations.apply_tables(frames, tables)
        return torch.from_numpy(frames).permute(0, 3, 1, 2)


def _table(operation: Operation) -> np.ndarray | None:
    """The look-up table (256,) of an operation that needs to know nothing of the clip."""
    name, argument = operation.name, operation.argument
    if name == "Invert":
        return colour_operations.INVERT
    if name == "Posterize":
        return colour_operations.posterize_table(argument)
    if name == "Solarize":
        return colour_operations.solarize_table(argument)
    if name == "SolarizeAdd":
        return colour_operations.solarize_add_table(argument)
    if name == "Brightness":
        return colour_operations.brightness_table(argument)
    return None


def _carry_out(frames: np.ndarray, operation: Operation, fill: Sequence[int]) -> np.ndarray:
    """Any operation that is no table, on uint8 (T, H, W, 3)."""
    name, argument, interpolation = operation.name, operation.argument, operation.interpolation
    _, height, width, _ = frames.shape
    if name == "AutoContrast":
        return colour_operations.autocontrast(frames)
    if name == "Equalize":
        return colour_operations.equalize(frames)
    if name == "Color":
        return colour_operations.saturation(frames, argument)
    if name == "Sharpness":
        return colour_operations.sharpness(frames, argument)
    if name == "Rotate":
        return geometric_operations.rotate(frames, argument, fill, interpolation)
    if name == "ShearX":
        return geometric_operations.shear_x(frames, argument, fill, interpolation)
    if name == "ShearY":
        return geometric_operations.shear_y(frames, argument, fill, interpolation)
    if name == "TranslateXRel":
        return geometric_operations.translate_x(frames, argument * width, fill, interpolation)
    assert name == "TranslateYRel", name
    return geometric_operations.translate_y(frames, argument * height, fill, interpolation)
