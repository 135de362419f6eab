#!/usr/bin/env python
"""Writes a trained model as torch.export or ONNX: the same as `revvideo export`, from a checkout, installed or not."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, whatever else is installed

from revvideo.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command("export", prog="tools/export.py"))
