"""`revvideo convert`: weights of any known format as a PySlowFast or a safetensors file."""

import argparse
from pathlib import Path

DESCRIPTION = "Convert weights (PySlowFast, pytorchvideo MViT, mmpretrain RevViT, safetensors) to another format."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="IN", help="file of weights")
    parser.add_argument("output", metavar="OUT", help="file to write, such as weights.pyth or weights.safetensors")
    parser.add_argument(
        "--to",
        choices=("pyslowfast", "safetensors"),
        help="format of OUT (default: by its suffix; .pyth is PySlowFast's)",
    )
    layout = parser.add_mutually_exclusive_group()
    layout.add_argument("--separate-qkv", action="store_true", help="q, k and v as three tensors")
    layout.add_argument("--fused-qkv", action="store_true", help="q, k and v as one tensor, qkv")
    parser.add_argument("--model", metavar="NAME", help="check that the weights fit this model (see `revvideo models`)")


def run(args: argparse.Namespace) -> int:
    from revvideo.errors import InputError
    from revvideo.models.checkpoint_formats import read_architecture, read_weights, write_weights

    if Path(args.input).resolve() == Path(args.output).resolve():
        raise InputError(f"IN and OUT are the same file, {args.input}; choose another OUT")
    if Path(args.output).is_dir():
        raise InputError(f"OUT, {args.output}, is a folder; name a file in it")
    weights = read_weights(args.input)
    tensors = _with_layout(weights.tensors, separate=args.separate_qkv, fused=args.fused_qkv)
    count = sum(tensor.numel() for tensor in tensors.values())
    print(f"{args.input}: {weights.format}, {len(weights.tensors)} tensors, {count / 1e6:.3f} M numbers")
    for note in weights.notes:
        print(f"  {note}")
    print(f"  holds: {read_architecture(weights.tensors) or 'a network of another family'}")
    if args.model:
        print(f"  fits {args.model}: {_check_fit(tensors, args.input, args.model)}")
    epoch = weights.extra.get("epoch")
    try:
        path = write_weights(args.output, tensors, format=args.to, epoch=epoch if isinstance(epoch, int) else None)
    except ValueError as error:
        raise InputError(str(error)) from error
    except OSError as error:
        raise InputError(f"{args.output} cannot be written: {error}") from error
    print(f"{path}: written, {path.stat().st_size / 2**20:.1f} MiB")
    return 0


def _with_layout(tensors, *, separate: bool, fused: bool) -> dict:
    from revvideo.models.qkv_layout import fuse_qkv, separate_qkv

    if separate:
        return separate_qkv(tensors)
    return fuse_qkv(tensors) if fused else dict(tensors)


def _check_fit(tensors, source: str, name: str):
    """The report of loading strictly into a model, which is built without memory."""
    import torch

    from revvideo.errors import InputError
    from revvideo.models.checkpoint_formats import Weights, fit_weights
    from revvideo.models.registry import create_model

    try:
        with torch.device("meta"):
            model = create_model(name)
    except ValueError as error:
        raise InputError(str(error)) from error
    return fit_weights(model, Weights(tensors, "tensors", source, tensors))[0]
