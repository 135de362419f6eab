#!/usr/bin/env python
"""Writes the features of videos: the same as `revvideo extract_features`, from a checkout, installed or not."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whatever else is installed

from revvideo.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command("extract_features", prog="tools/extract_features.py"))
