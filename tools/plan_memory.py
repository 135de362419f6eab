#!/usr/bin/env python
"""Plans the training memory of a config: the same as `revvideo plan_memory`, from a checkout, installed or not."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whatever else is installed

from revvideo.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command("plan_memory", prog="tools/plan_memory.py"))
