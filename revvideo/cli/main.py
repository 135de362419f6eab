"""The console script: finds the command, sets up logging, turns errors into exit codes (DESIGN.md, "Exit codes").

A command is a module with `DESCRIPTION`, `add_arguments(parser)` and `run(args) -> int`. It imports torch and the like
inside `run` only, so that `--help` of any command answers at once.
"""

import argparse
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

import revvideo
from revvideo.errors import CheckFailed, InputError, WorkerFailed

COMMANDS = {
    "run_net": "revvideo.cli.run_net",
    "demo": "revvideo.cli.demo",
    "models": "revvideo.cli.models",
    "convert": "revvideo.cli.convert",
    "check_data": "revvideo.cli.check_data",
    "prepare_videos": "revvideo.cli.prepare_videos",
    "plan_memory": "revvideo.cli.plan_memory",
    "benchmark": "revvideo.cli.benchmark",
}

EXIT_CRASH, EXIT_WRONG_INPUT, EXIT_CHECK_FAILED, EXIT_INTERRUPTED = 1, 2, 3, 130


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
        return _fail(f"error: there is no command {name!r}; {hint}", EXIT_WRONG_INPUT)
    return run_command(name, arguments[1:], prog=f"revvideo {name}")


def run_command(name: str, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs one command of COMMANDS and returns its exit code; tools/NAME.py is this and no more."""
    command = import_module(COMMANDS[name])
    parser = argparse.ArgumentParser(prog=prog, description=command.DESCRIPTION)
    command.add_arguments(parser)
    args = parser.parse_args(argv)
    _set_up_logging()
    # Read when torch is loaded. OpenMP's idle threads spin by default and keep the cores from the loader's workers.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return command.run(args)
    except InputError as error:
        return _fail(f"error: {error}", EXIT_WRONG_INPUT)
    except CheckFailed as error:
        return _fail(f"check failed: {error}", EXIT_CHECK_FAILED)
    except WorkerFailed as error:
        return _fail(f"error: {error}", EXIT_CRASH)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except Exception:
        traceback.print_exc()
        return EXIT_CRASH


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


def _fail(message: str, exit_code: int) -> int:
    print(f"revvideo: {message}", file=sys.stderr)
    return exit_code


def _set_up_logging() -> None:
    # basicConfig leaves handlers alone that are there already: those of a program that calls main(), or of a test.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error: names of files may be no UTF-8
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")


if __name__ == "__main__":
    sys.exit(main())
