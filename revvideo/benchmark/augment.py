"""RandAugment against torchvision's v2 functions: the same clips, operations, arguments and interpolation.

``python -m revvideo.benchmark.augment [--policy rand-m7-n4-mstd0.5-inc1] [--clips 200] [--frames 16] [--size 224 224]
[--interpolation bilinear] [--rounds 3]``: milliseconds of CPU time (one thread) for a clip, the mean over seeded clips
of each clip's median over interleaved rounds, and the median of each operation on its own. torchvision gets every clip
in both memory layouts, as the reader gives it (channels_last) and as (T, C, H, W); the quicker mean counts.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from revvideo.data.rand_augment import OPERATIONS, Operation, RandAugment, argument_of, parse_policy
from revvideo.data.transforms import as_clip
from revvideo.errors import InputError

FILL = (128, 128, 128)
OURS, LAST, FIRST = "revvideo", "torchvision channels_last", "torchvision contiguous"
WAYS = (OURS, LAST, FIRST)


def generated_clip(num_frames: int, height: int, width: int, seed: int) -> np.ndarray:
    """uint8 (T, H, W, 3): a smooth random picture that drifts, with sensor-like noise."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 9, 12)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (height, width + num_frames), mode="bicubic")[0]  # (3, H, W + T)
    frames = torch.stack([smooth[..., t : t + width] for t in range(num_frames)])  # (T, 3, H, W)
    noise = torch.from_numpy(rng.normal(0, 4, frames.shape).astype(np.float32))
    return (frames + noise).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def by_torchvision(clip: torch.Tensor, plan: Sequence[Operation]) -> torch.Tensor:
    """Carry out drawn operations with torchvision.transforms.v2.functional: uint8 (T, 3, H, W) -> the same."""
    from torchvision.transforms.v2 import functional

    simple = {
        "AutoContrast": functional.autocontrast,
        "Equalize": functional.equalize,
        "Invert": functional.invert,
    }
    with_argument = {
        "Posterize": functional.posterize,
        "Solarize": functional.solarize,
        "Color": functional.adjust_saturation,
        "Contrast": functional.adjust_contrast,
        "Brightness": functional.adjust_brightness,
        "Sharpness": functional.adjust_sharpness,
    }
    for operation in plan:
        name, argument = operation.name, operation.argument
        if name in simple:
            clip = simple[name](clip)
        elif name in with_argument:
            clip = with_argument[name](clip, argument)
        elif name == "SolarizeAdd":  # torchvision has none; this is the quickest way with torch
            clip = torch.where(clip < 128, clip.clamp(max=255 - argument) + argument, clip)
        else:
            clip = _warped(clip, operation)
    return clip


def _warped(clip: torch.Tensor, operation: Operation) -> torch.Tensor:
    from torchvision.transforms.v2 import functional

    argument, (height, width) = operation.argument, clip.shape[-2:]
    options = {
        "interpolation": functional.InterpolationMode(operation.interpolation),
        "fill": [float(level) for level in FILL],
    }
    if operation.name == "Rotate":
        return functional.rotate(clip, argument, **options)
    translate, shear = [0.0, 0.0], [0.0, 0.0]
    if operation.name == "TranslateXRel":
        translate[0] = -argument * width
    elif operation.name == "TranslateYRel":
        translate[1] = -argument * height
    else:
        shear[operation.name == "ShearY"] = float(np.degrees(np.arctan(argument)))
    return functional.affine(clip, 0.0, translate, 1.0, shear, center=[0.0, 0.0], **options)


def time_clip(augment: RandAugment, frames: np.ndarray, plan: Sequence[Operation], rounds: int) -> dict[str, float]:
    """Median milliseconds of CPU time of each of WAYS for one clip and plan; the ways take turns."""
    clip = as_clip(frames)
    contiguous = clip.contiguous()
    calls: dict[str, Callable[[], torch.Tensor]] = {
        OURS: lambda: augment.apply(clip, plan),
        LAST: lambda: by_torchvision(clip, plan),
        FIRST: lambda: by_torchvision(contiguous, plan),
    }
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(rounds):
        for i in range(len(WAYS)):
            way = WAYS[(turn + i) % len(WAYS)]
            start = time.process_time()
            calls[way]()
            seconds[way].append(time.process_time() - start)
    return {way: statistics.median(values) * 1e3 for way, values in seconds.items()}


def compare(augment: RandAugment, num_clips: int, shape: tuple[int, int, int], rounds: int) -> dict[str, float]:
    """Mean milliseconds of each of WAYS over seeded clips of (T, H, W), and "ratio" to the quicker torchvision."""
    totals = dict.fromkeys(WAYS, 0.0)
    for seed in range(num_clips):
        frames = generated_clip(*shape, seed)
        for way, value in time_clip(augment, frames, augment.draw(np.random.default_rng(seed)), rounds).items():
            totals[way] += value / num_clips
    return {**totals, "ratio": totals[OURS] / min(totals[LAST], totals[FIRST])}


def compare_operations(augment: RandAugment, shape: tuple[int, int, int], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each of WAYS for each operation on its own, at the policy's magnitude."""
    frames, times = generated_clip(*shape, 0), {}
    interpolation = "bilinear" if augment.interpolation == "random" else augment.interpolation
    for name in OPERATIONS:
        policy = augment.policy
        argument = argument_of(name, policy.magnitude, policy.increasing, np.random.default_rng(0))
        times[name] = time_clip(augment, frames, [Operation(name, argument, interpolation)], rounds)
    return times


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="python -m revvideo.benchmark.augment", description=__doc__.split("\n")[0])
    parser.add_argument("--policy", default="rand-m7-n4-mstd0.5-inc1", help="RandAugment policy")
    parser.add_argument("--clips", type=int, default=200, help="seeded clips")
    parser.add_argument("--frames", type=int, default=16, help="frames of a clip")
    parser.add_argument("--size", type=int, nargs=2, default=(224, 224), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--interpolation", default="bilinear", choices=("nearest", "bilinear"))
    parser.add_argument("--rounds", type=int, default=3, help="timings of a clip, of which the median counts")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    options = parser().parse_args(arguments)
    if min(options.clips, options.frames, options.rounds, *options.size) < 1:
        raise InputError("--clips, --frames, --size and --rounds must be at least 1")
    torch.set_num_threads(1)
    augment = RandAugment(parse_policy(options.policy), FILL, options.interpolation)
    shape = (options.frames, *options.size)
    compare_operations(augment, shape, 1)  # warm up: imports, first calls
    print(f"{'operation':16}" + "".join(f"{way:>28}" for way in WAYS) + "   ms")
    for name, times in compare_operations(augment, shape, max(options.rounds, 3)).items():
        print(f"{name:16}" + "".join(f"{times[way]:28.2f}" for way in WAYS))
    result = compare(augment, options.clips, shape, options.rounds)
    print(f"{'mean of clips':16}" + "".join(f"{result[way]:28.2f}" for way in WAYS))
    print(f"{options.policy}, {options.clips} clips of {shape}: {result['ratio']:.3f} of torchvision's time")


if __name__ == "__main__":
    main()
