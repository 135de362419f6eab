"""`revvideo benchmark loader`: clips a second of the training loader of a config, and where its time goes."""

import argparse
import contextlib
import json
import shlex
import tempfile
from pathlib import Path

from revvideo.cli.argument_types import naturals, positive
from revvideo.config.arguments import add_config_arguments, config_from_arguments

DESCRIPTION = "Clips/s of the training loader of a config, and the share of each stage in its CPU time."

GENERATED = "generated"
BASE = "Kinetics/REV_MVIT_B_16x4_CONV"  # the config of generated data


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    add = parser.add_argument
    add("--num-workers", type=naturals, default=[0], metavar="N,N", help="worker processes; 0: this process (0)")
    add("--batches", type=positive, default=8, metavar="N", help="counted batches of each measurement (8)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where batches are normalised and mixed (cpu)")
    add("--json", type=Path, metavar="FILE", help="write all figures")
    generated = parser.add_argument_group(f"`--cfg {GENERATED}`: {BASE} on generated videos, 340x256, GOP 250")
    generated.add_argument("--videos", type=positive, default=4, metavar="N", help="different videos (4)")
    generated.add_argument("--seconds", type=positive, default=10, metavar="N", help="of a video (10)")


def run(args: argparse.Namespace) -> int:
    import torch

    from revvideo.benchmark.loader import CONVENTIONS, format_loader_result, measure_stages, measure_throughput
    from revvideo.benchmark.machine import describe_machine
    from revvideo.errors import InputError
    from revvideo.paths import replace_file

    if args.json and (args.json.is_dir() or not args.json.parent.is_dir()):
        raise InputError(f"--json {args.json} cannot be written: a folder, or in a folder that does not exist")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device is cuda, but torch finds no CUDA device; leave it out to measure on the CPU")
    torch.set_num_threads(1)
    device = torch.device(args.device)
    command = command_line(args)
    with contextlib.ExitStack() as stack:
        data = _generate(args, stack) if args.cfg == [GENERATED] else {}

        def config(num_workers: int):
            pinning = {} if args.device == "cuda" else {"DATA_LOADER.PIN_MEMORY": False}
            return config_from_arguments(args, data | pinning | {"DATA_LOADER.NUM_WORKERS": num_workers})

        cfg = config(0)
        result = {
            "header": {"command": command, "machine": describe_machine(device)},
            "conventions": CONVENTIONS,
            "config": _describe(cfg),
            "stages": measure_stages(cfg, device, args.batches),
            "throughput": [measure_throughput(config(n), args.batches) for n in args.num_workers],
        }
    if args.json:
        text = json.dumps(result, indent=2) + "\n"
        replace_file(args.json, lambda temporary: temporary.write_text(text, "utf-8"))
    print(format_loader_result(result))
    return 0


def _generate(args: argparse.Namespace, stack: contextlib.ExitStack) -> dict:
    """Write the videos into a folder that goes with `stack`; sets the config; returns the keys that point there."""
    from revvideo.benchmark.generated_video import Content
    from revvideo.benchmark.loader import write_training_list

    args.cfg = [BASE]
    batch = config_from_arguments(args).TRAIN.BATCH_SIZE
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="revvideo-loader-")))
    content = Content(num_frames=30 * args.seconds, cuts=1)
    write_training_list(folder, num_samples=max(4 * batch, args.videos), count=args.videos, content=content)
    # A list of real videos names each one once an epoch: no cache of packet indices, which would have them all.
    return {"DATA.PATH_TO_DATA_DIR": str(folder), "DATA.PATH_PREFIX": "", "LOADER.INDEX_CACHE": ""}


def _describe(cfg) -> str:
    """What the figures depend on, in a line."""
    data, aug = cfg.DATA, cfg.AUG
    words = [
        f"{data.NUM_FRAMES}x{data.SAMPLING_RATE} clips of {data.TRAIN_CROP_SIZE} pixels",
        f"{cfg.TRAIN.BATCH_SIZE} videos a batch",
        f"{aug.NUM_SAMPLE if aug.ENABLE else 1} clips a video",
        f"backend {data.DECODING_BACKEND}",
        f"augmentation {(aug.AA_TYPE or 'none') if aug.ENABLE else 'none'}",
        f"mixup {'on' if cfg.MIXUP.ENABLE else 'off'}",
    ]
    return ", ".join(words)


def command_line(args: argparse.Namespace) -> str:
    """The command that measures the same again, with every choice spelled out."""
    words = ["revvideo", "benchmark", "loader", "--cfg", *(args.cfg or [])]
    words += [str(word) for word in [*(args.opts or []), *args.overrides]]
    words += ["--num-workers", ",".join(map(str, args.num_workers)), "--batches", str(args.batches)]
    words += ["--device", args.device]
    if args.cfg == [GENERATED]:
        words += ["--videos", str(args.videos), "--seconds", str(args.seconds)]
    return shlex.join(words)
