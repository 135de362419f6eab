"""Runs a module as `python -m` does, but with the code that this file is part of:

    python CODE/revvideo/launch/start.py [-u] -m MODULE [ARGUMENT ...]

`python -m` looks into the working directory before anything else. Where that is a checkout, its revvideo would run in
place of what was submitted, whatever PYTHONPATH says.
"""

import sys

FOLDER = __file__.rpartition("/")[0]

if __name__ == "__main__":
    # First of all: revvideo/launch, where Python looks for a script's imports, has names that others may want.
    sys.path[:] = [FOLDER.removesuffix("/revvideo/launch"), *(path for path in sys.path if path != FOLDER)]

    import runpy

    sys.argv = sys.argv[sys.argv.index("-m") + 1 :]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
