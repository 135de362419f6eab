"""What a job asks for: the options of the command line over a profile over what follows from the config."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from fvcore.common.config import CfgNode

from revvideo.errors import InputError
from revvideo.launch.parse import (
    check_variable,
    parse_interface,
    parse_line,
    parse_memory,
    parse_minutes,
    parse_variable,
    parse_whole,
)
from revvideo.launch.resources import Resources

_DEFAULTS = Resources()
_LONGEST_SIGNAL = 65535  # seconds: Slurm's own limit


@dataclass(frozen=True)
class Option:
    """One field of `Resources`: how the command line and a profile give it.

    Attributes:
        field: its name there, and the key of a profile.
        flag: the option.
        parse: `(text, name for messages) -> value`.
        metavar, help: for --help.
        parse_in_profile: the same for a profile, where that reads plain numbers in another unit.
    """

    field: str
    flag: str
    parse: Callable[[str, str], Any]
    metavar: str
    help: str
    parse_in_profile: Callable[[str, str], Any] | None = None


_natural, _positive = partial(parse_whole, smallest=0), partial(parse_whole, smallest=1)

OPTIONS = (
    Option("nodes", "--nodes", _positive, "N", "machines (NUM_SHARDS of the config)"),
    Option("gpus_per_node", "--gpus-per-node", _natural, "N", "GPUs of each, a task a GPU; 0: CPU (NUM_GPUS)"),
    Option("tasks_per_node", "--tasks-per-node", _positive, "N", "processes of each, on the CPU (DIST.NUM_PROCESSES)"),
    Option("cpus_per_task", "--cpus-per-task", _positive, "N", "cores of each process (1 + DATA_LOADER.NUM_WORKERS)"),
    Option(
        "mem_gib",
        "--mem",
        parse_memory,
        "64G",
        "memory of each node; without a unit in MiB (the partition's default)",
        partial(parse_memory, unit="G"),
    ),
    Option("minutes", "--time", parse_minutes, "72:00:00", "time limit of a job; without colons in minutes (60)"),
    Option("partition", "--partition", parse_line, "NAME", "partition"),
    Option("account", "--account", parse_line, "NAME", "account"),
    Option("qos", "--qos", parse_line, "NAME", "quality of service"),
    Option("constraint", "--constraint", parse_line, "FEATURES", "features that the nodes must have"),
    Option("exclude", "--exclude", parse_line, "NODES", "nodes that are not taken"),
    Option("comment", "--comment", parse_line, "TEXT", "comment of the job"),
    Option("job_name", "--job-name", parse_line, "NAME", f"what the queue shows ({_DEFAULTS.job_name})"),
    Option(
        "signal_seconds",
        "--signal-seconds",
        _positive,
        "S",
        f"how long before the time limit the job saves and requeues ({_DEFAULTS.signal_seconds}, at most half of it)",
    ),
    Option("max_restarts", "--max-restarts", _natural, "N", f"crashes that are retried ({_DEFAULTS.max_restarts})"),
    Option(
        "backoff_seconds",
        "--backoff-seconds",
        _natural,
        "S",
        f"wait before the first retry; it doubles with each ({_DEFAULTS.backoff_seconds})",
    ),
    Option("interface", "--interface", parse_interface, "NAME", "network interface of NCCL and gloo (they choose)"),
)


def add_resource_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `Resources` to `parser`; their values stay text until `resources_of`."""
    group = parser.add_argument_group("resources")
    for option in OPTIONS:
        group.add_argument(option.flag, dest=option.field, metavar=option.metavar, help=option.help)
    group.add_argument(
        "--setup", action="append", default=[], metavar="CMD", help="shell line before the job, after the profile's"
    )
    group.add_argument("--env", action="append", default=[], metavar="K=V", help="variable of the job")


def given_on_command_line(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of `Resources` that options set, parsed.

    Raises:
        InputError: a value that cannot be.
    """
    texts = {option: getattr(args, option.field) for option in OPTIONS}
    given = {option.field: option.parse(text, option.flag) for option, text in texts.items() if text is not None}
    given["setup"] = tuple(args.setup)
    given["env"] = dict(parse_variable(text, "--env") for text in args.env)
    return given


def parse_profile(tree: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Fields of `Resources` that a profile sets, parsed.

    Args:
        tree: known keys with the text of their values; a list of texts for `setup`, a dict of them for `env`.
        file: for messages.

    Raises:
        InputError: a value that cannot be.
    """
    parsers = {option.field: option.parse_in_profile or option.parse for option in OPTIONS}
    given: dict[str, Any] = {}
    for field, value in tree.items():
        name = f"{file}: {field}"
        if field == "setup":
            given[field] = _setup_lines(value, name)
        elif field == "env":
            if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
                raise InputError(f"{name} is {value!r}; expected NAME: value lines below it")
            given[field] = dict(check_variable(variable, text, name) for variable, text in value.items())
        elif isinstance(value, str):
            given[field] = parsers[field](value, name)
        else:
            raise InputError(f"{name} is {value!r}; expected one value")
    return given


def _setup_lines(value: Any, name: str) -> tuple[str, ...]:
    lines = [value] if isinstance(value, str) else value
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise InputError(f"{name} is {value!r}; expected a shell line or a list of shell lines")
    return tuple(lines)


def resources_of(given: Mapping[str, Any], profile: Mapping[str, Any], cfg: CfgNode, cluster: str) -> Resources:
    """What a job asks for: what is given, over the profile, over what follows from the config.

    The config says how many machines (NUM_SHARDS), GPUs (NUM_GPUS) or processes on the CPU (DIST.NUM_PROCESSES), and
    how many cores each process needs (DATA_LOADER.NUM_WORKERS and one for itself), where nothing else does. `setup`
    lines are added to the profile's, variables of `env` replace them one by one.

    Args:
        given: from `given_on_command_line`.
        profile: from `parse_profile`; empty without one.
        cfg: the loaded config.
        cluster: one of CLUSTERS; local and debug have one machine, debug one process.

    Raises:
        InputError: values that cannot go together.
    """
    found = {**profile, **given}
    found["setup"] = (*profile.get("setup", ()), *given.get("setup", ()))
    found["env"] = {**profile.get("env", {}), **given.get("env", {})}
    found.setdefault("nodes", cfg.NUM_SHARDS if cluster == "slurm" else 1)
    found.setdefault("gpus_per_node", cfg.NUM_GPUS if cluster != "debug" else min(1, cfg.NUM_GPUS))
    gpus = found["gpus_per_node"]
    if "gpus_per_node" in given and "tasks_per_node" not in given:
        found.pop("tasks_per_node", None)  # the profile's belongs to the profile's number of GPUs
    on_cpu = max(1, cfg.DIST.NUM_PROCESSES) if cluster != "debug" else 1
    found.setdefault("tasks_per_node", gpus or on_cpu)
    workers = cfg.DATA_LOADER.NUM_WORKERS
    found.setdefault("cpus_per_task", workers + 1)
    found.setdefault("minutes", _DEFAULTS.minutes)
    found.setdefault("signal_seconds", min(_DEFAULTS.signal_seconds, found["minutes"] * 30))
    found["env"].setdefault("OMP_NUM_THREADS", str(max(1, found["cpus_per_task"] - workers)))
    resources = Resources(**found)
    _check(resources, cluster)
    return resources


def _check(resources: Resources, cluster: str) -> None:
    nodes, gpus, tasks = resources.nodes, resources.gpus_per_node, resources.tasks_per_node
    if gpus and tasks != gpus:
        raise InputError(
            f"--tasks-per-node is {tasks} with --gpus-per-node {gpus}; expected a task a GPU: leave --tasks-per-node "
            "out, or give --gpus-per-node 0 for a job on the CPU"
        )
    if cluster != "slurm" and nodes != 1:
        raise InputError(f"--nodes is {nodes}, but --cluster {cluster} is this machine alone; expected --nodes 1")
    if cluster == "debug" and tasks != 1:
        option = f"--gpus-per-node {gpus}" if gpus else f"--tasks-per-node {tasks}"
        raise InputError(f"{option}: --cluster debug is this one process; expected 1, or --cluster local")
    if resources.signal_seconds >= resources.minutes * 60:
        raise InputError(
            f"--signal-seconds is {resources.signal_seconds}, but the time limit is {resources.minutes * 60} s; "
            "expected less, so that there is time to train before the job is told to save"
        )
    if resources.signal_seconds > _LONGEST_SIGNAL:
        raise InputError(
            f"--signal-seconds is {resources.signal_seconds}; expected at most {_LONGEST_SIGNAL}, which Slurm allows"
        )
    if not resources.job_name:
        raise InputError("--job-name is empty; expected a name, or leave it out")
