"""The console script: finds the command, sets up logging, turns errors into exit codes (DESIGN.md, "Exit codes").

A command is a module with `DESCRIPTION`, `add_arguments(parser)` and `run(args) -> int`. It imports torch and the like
inside `run` only, so that `--help` of any command answers at once.
"""

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

import revvideo
from revvideo.distributed.before_torch import prepare_torch
from revvideo.distributed.env import Process, current_process
from revvideo.distributed.rank_logging import line_prefix, set_up_logging
from revvideo.errors import InputError
from revvideo.exit_codes import EXIT_WRONG_INPUT, fail, run_guarded

COMMANDS = {
    "run_net": "revvideo.cli.run_net",
    "submit": "revvideo.cli.submit",
    "status": "revvideo.cli.status",
    "logs": "revvideo.cli.logs",
    "cancel": "revvideo.cli.cancel",
    "predict": "revvideo.cli.predict",
    "compare": "revvideo.cli.compare",
    "report": "revvideo.cli.report",
    "demo": "revvideo.cli.demo",
    "models": "revvideo.cli.models",
    "convert": "revvideo.cli.convert",
    "export": "revvideo.cli.export",
    "check_data": "revvideo.cli.check_data",
    "prepare_videos": "revvideo.cli.prepare_videos",
    "plan_memory": "revvideo.cli.plan_memory",
    "visualize": "revvideo.cli.visualize",
    "extract_features": "revvideo.cli.extract_features",
    "benchmark": "revvideo.cli.benchmark",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `revvideo ARGV...` and returns its exit code. argparse's own errors leave as SystemExit(2)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else EXIT_WRONG_INPUT
    name = arguments[0]
    if name in ("-V", "--version"):
        print(f"revvideo {revvideo.__version__}")
        return 0
    if name not in COMMANDS:
        nearest = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"the commands are {', '.join(COMMANDS)}"
        return fail(f"error: there is no command {name!r}; {hint}", EXIT_WRONG_INPUT)
    return run_command(name, arguments[1:], prog=f"revvideo {name}")


def run_command(name: str, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs one command of COMMANDS and returns its exit code; tools/NAME.py is this and no more."""
    command = import_module(COMMANDS[name])
    parser = argparse.ArgumentParser(prog=prog, description=command.DESCRIPTION)
    command.add_arguments(parser)
    args = parser.parse_args(argv)
    process = _place()
    set_up_logging(process)
    prepare_torch()
    return run_guarded(lambda: command.run(args), prefix=line_prefix(process))


def _place() -> Process:
    """This process, for what it prints. Whether an environment that cannot be read matters, the command decides."""
    try:
        return current_process()
    except InputError:
        return Process()


def _overview() -> str:
    width = max(map(len, COMMANDS))
    descriptions = {name: import_module(module).DESCRIPTION for name, module in COMMANDS.items()}
    return "\n".join(
        [
            "usage: revvideo COMMAND ...",
            "       revvideo COMMAND --help",
            "       revvideo --version",
            "",
            "Train, evaluate and run video action-recognition transformers, reversible ones first.",
            "",
            "commands:",
            *(f"  {name:<{width}}  {text.strip().splitlines()[0]}" for name, text in descriptions.items()),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
