"""`revvideo export`: a trained model as a torch.export or ONNX file, checked on real clips."""

import argparse
import json
from pathlib import Path

from revvideo.cli.model_arguments import add_model_arguments, model_from_arguments

DESCRIPTION = "Write a trained model as torch.export (.pt2) or ONNX files and check their logits on real clips."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", nargs="+", required=True, metavar="FILE", help="files to write: .pt2, .onnx or both")
    parser.add_argument(
        "--videos",
        nargs="+",
        required=True,
        metavar="PATH",
        help="videos, or folders of them, to check with: two clips of each; pictures for an image model",
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="clips that the files take at a time (default: any number)"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of lines")
    add_model_arguments(parser, device=False)


def run(args: argparse.Namespace) -> int:
    from revvideo.export.formats import format_of
    from revvideo.export.job import export_model

    files = [Path(file) for file in args.out]
    for file in files:
        format_of(file)  # before the weights are read
    loaded = model_from_arguments(args)
    done = []
    for written in export_model(loaded, files, args.videos, batch_size=args.batch_size):
        if not args.json:
            print(
                f"{written.path}: {written.format}, {written.num_bytes / 2**20:.1f} MiB, {_batch(written.batch_size)}"
            )
            print(f"  {written.parity}", flush=True)
        done.append(
            {
                "path": str(written.path),
                "format": written.format,
                "bytes": written.num_bytes,
                "batch_size": written.batch_size,
                "max_difference": written.parity.difference,
                "max_logit": written.parity.magnitude,
                "relative_difference": written.parity.relative,
                "clips": written.parity.num_clips,
            }
        )
    if args.json:
        print(json.dumps(done, indent=2))
    return 0


def _batch(size: int | None) -> str:
    return "batches of any size" if size is None else f"batches of {size}"
