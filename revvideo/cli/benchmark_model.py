"""`revvideo benchmark model`: training steps of models side by side."""

import argparse
import ast
import json
import os
import shlex
from pathlib import Path

from revvideo.cli.argument_types import names, positive, positives

DESCRIPTION = "Time and peak memory of a training step, by model, backprop mode, precision and batch size."

# Options of a model that have a flag here.
FLAGS = {"backprop": "--modes", "checkpoint_blocks": "--modes", "pooling": "--pooling"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--models", nargs="+", required=True, metavar="NAME", help="names of `revvideo models`")
    add("--modes", type=names, default=["reversible", "plain", "checkpoint"], help="reversible,plain,checkpoint (all)")
    add("--precision", type=names, default=["float32"], help="of float32,bfloat16,float16 (float32)")
    add("--batch-sizes", type=positives, default=[1], metavar="N,N", help="clips of a step (1)")
    add(
        "--option",
        action="append",
        default=[],
        type=_option,
        metavar="KEY=VALUE",
        help="argument of create_model for all models but the peer, such as depth=32 or keep_mib=0; drop_path is 0 "
        "unless given here",
    )
    add("--pooling", type=names, help="operators of the pooling convolutions to compare, such as aten,taps,compiled")
    add("--compile", action="store_true", help="compile the models (not the peer)")
    add("--depths", type=positives, default=[], metavar="N,N", help="peak memory of so many blocks, at the first batch")
    peer = parser.add_mutually_exclusive_group()
    peer.add_argument(
        "--peer",
        default="ptv/mvit_b_16x4",
        metavar="NAME",
        help="the model whose float32 steps run in turn with the others (ptv/mvit_b_16x4)",
    )
    peer.add_argument("--no-peer", dest="peer", action="store_const", const=None, help="measure without a peer")
    add("--pairs", type=positive, default=5, metavar="N", help="timed steps of a row (5)")
    add("--threads", type=positive, metavar="N", help="threads of torch (its own choice)")
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    add("--max-batch", action="store_true", help="search the largest batch; on a CPU give --memory-limit too")
    add("--memory-limit", type=_gibibytes, metavar="GiB", help="for --max-batch, instead of all memory of the GPU")
    add("--json", type=Path, metavar="FILE", help="write all figures; kept up to date while measuring")
    add("--plot", type=Path, metavar="FILE", help="draw times and memory as .svg or .png (needs matplotlib)")


def run(args: argparse.Namespace) -> int:
    # Read when torch is loaded: its profiler, which counts memory, announces every start and stop.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import torch

    from revvideo.benchmark.machine import describe_machine
    from revvideo.benchmark.model import ModelBenchmark, Plan
    from revvideo.benchmark.model_table import format_result
    from revvideo.benchmark.plots import check_plot_path, plot_result
    from revvideo.benchmark.variants import Variant, check_name, resolve_variants, without_drop_path
    from revvideo.errors import InputError
    from revvideo.paths import replace_file

    device = _device(args)
    for path in filter(None, (args.json, args.plot)):
        if path.is_dir() or not path.parent.is_dir():
            raise InputError(
                f"{path} cannot be written: {'a folder' if path.is_dir() else 'its folder does not exist'}"
            )
    if args.plot:
        check_plot_path(args.plot)
    poolings = args.pooling or [None]
    variants, skipped = resolve_variants(args.models, args.modes, poolings, dict(args.option), compiled=args.compile)
    peer = None
    if args.peer:
        check_name(args.peer)
        peer = Variant(args.peer, "plain", options=without_drop_path(args.peer, {}))
    if args.threads:
        torch.set_num_threads(args.threads)
    plan = Plan(
        variants=variants,
        precisions=args.precision,
        batch_sizes=args.batch_sizes,
        device=device,
        pairs=args.pairs,
        peer=peer,
        depths=args.depths,
        max_batch=args.max_batch,
        memory_limit=args.memory_limit,
        skipped=skipped,
    )

    def save(result: dict) -> None:
        if args.json:
            text = json.dumps(result, indent=2) + "\n"
            replace_file(args.json, lambda temporary: temporary.write_text(text, "utf-8"))

    machine = describe_machine(device)
    header = {"command": command_line(args, machine["threads"]), "machine": machine}
    result = ModelBenchmark(plan, header=header, on_result=save).run()
    save(result)
    print(format_result(result))
    if args.plot:
        plot_result(result, args.plot)
    return 0


def _device(args: argparse.Namespace):
    """The torch device that `args` ask for, checked with what they want of it."""
    import torch

    from revvideo.errors import InputError
    from revvideo.models.depthwise_pooling import check_operator

    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("--device is cuda, but torch finds no CUDA device; leave it out to measure on the CPU")
    for operator in args.pooling or ():
        try:
            check_operator(operator, device.type)
        except ValueError as error:
            raise InputError(str(error)) from error
    if args.memory_limit and not args.max_batch:
        raise InputError("--memory-limit is about --max-batch, which is not given")
    if args.max_batch and device.type == "cpu" and not args.memory_limit:
        raise InputError("--max-batch on a CPU needs --memory-limit GiB: a search for the end of its memory would swap")
    if args.memory_limit and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        if args.memory_limit > total:
            raise InputError(
                f"--memory-limit is {args.memory_limit / 2**30:g} GiB; this device has {total / 2**30:.1f} GiB"
            )
    return device


def command_line(args: argparse.Namespace, threads: int) -> str:
    """The command that measures the same again, with every choice spelled out."""
    words = ["revvideo", "benchmark", "model", "--models", *args.models]
    for flag, values in (
        ("--modes", args.modes),
        ("--precision", args.precision),
        ("--batch-sizes", args.batch_sizes),
        ("--pooling", args.pooling),
        ("--depths", args.depths),
    ):
        words += [flag, ",".join(map(str, values))] if values else []
    for name, value in args.option:
        words += ["--option", f"{name}={value}"]
    words += ["--peer", args.peer] if args.peer else ["--no-peer"]
    words += ["--pairs", str(args.pairs), "--threads", str(threads)]
    words += ["--device", args.device] if args.device else []
    words += ["--compile"] if args.compile else []
    words += ["--max-batch"] if args.max_batch else []
    words += ["--memory-limit", f"{args.memory_limit / 2**30:g}"] if args.memory_limit else []
    return shlex.join(words)


# Types of arguments: argparse shows their errors in one line and leaves with exit code 2.


def _gibibytes(text: str) -> int:
    """GiB as bytes."""
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0.0 < size < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of GiB above 0")
    return int(size * 2**30)


def _option(text: str) -> tuple[str, object]:
    """KEY=VALUE with a Python literal, or a plain word, as the value."""
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"{text!r}: expected KEY=VALUE, such as depth=32")
    if name in FLAGS:
        raise argparse.ArgumentTypeError(f"{name} is chosen by {FLAGS[name]}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
