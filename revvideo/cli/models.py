"""`revvideo models`: a table of the models, with parameters, arithmetic and input."""

import argparse
import difflib
import json

DESCRIPTION = "List the models: parameters, multiply-adds of one view, input."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern for the names, such as 'rev_*' (all)")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
    parser.add_argument("--no-flops", action="store_true", help="leave out the GFLOPs, which take the longest")


def run(args: argparse.Namespace) -> int:
    from revvideo.errors import InputError
    from revvideo.models.registry import list_models

    names = list_models(args.pattern)
    if not names:
        nearest = difflib.get_close_matches(args.pattern, list_models(), n=3, cutoff=0.0)
        raise InputError(f"no model matches {args.pattern!r}; the nearest names are {', '.join(nearest)}")
    if args.json:
        print(json.dumps([_describe(name, flops=not args.no_flops) for name in names], indent=2))
        return 0
    width = max(map(len, names))
    giga = "" if args.no_flops else f"  {'GFLOPs':>8}"
    print(f"{'model':<{width}}  {'parameters (M)':>14}{giga}  {'frames x stride':>15}  size")
    for name in names:
        print(_row(_describe(name, flops=not args.no_flops), width), flush=True)
    return 0


def _describe(name: str, *, flops: bool) -> dict:
    """What the table says about a model. It is built without memory: only shapes are computed."""
    import torch

    from revvideo.benchmark.flops import count_flops
    from revvideo.models.registry import create_model

    with torch.device("meta"):
        model = create_model(name)
    spec = model.input_spec
    found = {"name": name, "parameters": sum(p.numel() for p in model.parameters())}
    if flops:
        found["gflops"] = round(count_flops(model).giga, 4)
    return found | {"image": spec.image, "frames": spec.frames, "stride": spec.stride, "size": list(spec.size)}


def _row(found: dict, width: int) -> str:
    giga = f"  {found['gflops']:8.2f}" if "gflops" in found else ""
    frames = "image" if found["image"] else f"{found['frames']} x {found['stride']}"
    height, wide = found["size"]
    return f"{found['name']:<{width}}  {found['parameters'] / 1e6:14.3f}{giga}  {frames:>15}  {height} x {wide}"
