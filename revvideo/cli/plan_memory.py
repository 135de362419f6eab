"""`revvideo plan_memory`: peak training memory and the largest batch of a config, without a GPU."""

import argparse
import json

from revvideo.config.arguments import add_config_arguments, config_from_arguments

DESCRIPTION = "Plan the training memory of a config: what a batch takes, or the largest batch of a GPU; needs no GPU."

MODES = ("plain", "checkpointed", "reversible")
PRECISIONS = ("float32", "bf16", "fp16")
COLUMNS = {  # of the table, in MiB: attribute of the plan -> heading
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer_state": "optimizer",
    "inputs": "input",
    "activations": "activations",
    "temporaries": "temporaries",
    "total": "total",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch-size", type=int, metavar="N", help="clips in one process (as the config says)")
    parser.add_argument("--gpu-memory", type=float, metavar="GiB", help="find the largest batch for a GPU of this size")
    parser.add_argument("--mode", choices=MODES, help="plan this mode only (both that the model has)")
    parser.add_argument("--precision", choices=PRECISIONS, help="plan this precision only (all)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="plan for this device (cuda with --gpu-memory or NUM_GPUS, else cpu)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, in bytes, instead of a table")
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    _check(args)
    cfg = config_from_arguments(args)
    device = args.device or ("cuda" if args.gpu_memory or cfg.NUM_GPUS else "cpu")
    from revvideo.planner import usable_gpu_bytes

    budget = usable_gpu_bytes(args.gpu_memory) if args.gpu_memory else None
    batch_size = None if budget else args.batch_size or _clips_at_a_time(cfg)
    model = _model(cfg)
    rows = [(mode, precision) for mode in _modes(model, args.mode) for precision in PRECISIONS]
    rows = [row for row in rows if args.precision in (None, row[1])]
    plans = _plans(cfg, rows, batch_size, budget, device)
    if args.json:
        print(json.dumps(_described(args, model, device, budget, plans), indent=2))
        return 0
    for line in _heading(args, model, device, budget):
        print(line)
    print(_row("mode", "precision", "batch", COLUMNS.values()))
    for (mode, precision), plan in plans.items():
        sizes = ["-"] * len(COLUMNS) if plan is None else [f"{getattr(plan, name) / 2**20:.1f}" for name in COLUMNS]
        print(_row(mode, precision, "none" if plan is None else plan.batch_size, sizes))
    return 0


def _check(args: argparse.Namespace) -> None:
    from revvideo.errors import InputError

    if args.batch_size is not None and args.gpu_memory is not None:
        raise InputError("--batch-size and --gpu-memory are both given: the batch, or the memory that it has to fit")
    if args.batch_size is not None and args.batch_size < 1:
        raise InputError(f"--batch-size is {args.batch_size}; expected at least 1 clip")
    if args.gpu_memory is not None and not 0 < args.gpu_memory < 2**20:
        raise InputError(f"--gpu-memory is {args.gpu_memory:g}; expected the size of a GPU in GiB, such as 24")


def _clips_at_a_time(cfg) -> int:
    from revvideo.config.batch import batch_plan, planned_processes

    return batch_plan(cfg, processes_per_machine=planned_processes(cfg)).clips_per_part


def _model(cfg):
    import torch

    from revvideo.build import build_model

    with torch.device("meta"):
        return build_model(cfg)


def _modes(model, wanted: str | None) -> list[str]:
    from revvideo.errors import InputError
    from revvideo.planner import training_modes

    known = training_modes(model)
    if wanted not in (None, *known):
        raise InputError(f"--mode is {wanted}, but {type(model).__name__} is trained {' or '.join(known)}")
    return [mode for mode in known if wanted in (None, mode)]


def _plans(cfg, rows: list[tuple[str, str]], batch_size: int | None, budget: int | None, device: str) -> dict:
    """(mode, precision) -> plan of the batch, or of the largest one; None where not even one clip fits.

    Raises:
        InputError: one clip fits in no mode and precision.
    """
    from revvideo.errors import InputError
    from revvideo.planner import TooLittleMemory, largest_batch, plan_training

    plans, refused, guesses = {}, [], {}
    for mode, precision in rows:

        def plan(batch: int, mode=mode, precision=precision):
            return plan_training(cfg, batch, precision, mode, device=device)

        if budget is None:
            plans[mode, precision] = plan(batch_size)
            continue
        try:
            found = largest_batch(plan, budget, guess=guesses.get(mode, 2))
            plans[mode, precision], guesses[mode] = found, found.batch_size + 1
        except TooLittleMemory as error:
            plans[mode, precision] = None
            refused.append(error.plan)
    if len(refused) == len(plans) and refused:
        least = min(refused, key=lambda plan: plan.total)
        raise InputError(
            f"--gpu-memory leaves {budget / 2**20:.0f} MiB for tensors, but one clip takes at least "
            f"{least.total / 2**20:.0f} MiB ({least.mode}, {least.precision}); name a larger GPU or a smaller model"
        )
    return plans


def _described(args: argparse.Namespace, model, device: str, budget: int | None, plans: dict) -> dict:
    rows = [
        {"mode": mode, "precision": precision}
        | ({"batch_size": 0} if plan is None else {"batch_size": plan.batch_size})
        | ({} if plan is None else {name: getattr(plan, name) for name in (*COLUMNS, "optimizer_temporaries", "peak")})
        for (mode, precision), plan in plans.items()
    ]
    return {
        "config": args.cfg,
        "clip": list(model.input_spec.shape),
        "device": device,
        "gpu_memory_gib": args.gpu_memory,
        "bytes_for_tensors": budget,
        "plans": rows,
    }


def _heading(args: argparse.Namespace, model, device: str, budget: int | None) -> list[str]:
    from revvideo.planner.largest_batch import CUDA_CONTEXT_BYTES, CUDA_FRAGMENTATION, CUDA_WORKSPACE_BYTES

    clip = " x ".join(map(str, model.input_spec.shape))
    lines = [f"{' '.join(args.cfg)}: clips of {clip}, planned for {device}; MiB of tensors in one process"]
    if budget is not None:
        lines.append(
            f"largest batch in {budget / 2**20:.0f} MiB = {args.gpu_memory:g} GiB less {CUDA_FRAGMENTATION:.0%} for "
            f"fragmentation, {CUDA_CONTEXT_BYTES / 2**20:.0f} MiB for the CUDA context and "
            f"{CUDA_WORKSPACE_BYTES / 2**20:.0f} MiB for workspaces of kernels"
        )
    return lines


def _row(mode: str, precision: str, batch: object, sizes) -> str:
    return f"{mode:<12}  {precision:<9}  {batch!s:>6}" + "".join(f"  {size:>11}" for size in sizes)
