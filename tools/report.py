#!/usr/bin/env python
"""Writes the report of a run: the same as `revvideo report`, from a checkout, installed or not."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whatever else is installed

from revvideo.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command("report", prog="tools/report.py"))
