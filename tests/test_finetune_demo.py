"""The commands of docs/training.md, as they stand there: from the demo's checkpoint to three classes of one's own.

The checkpoint comes from a shorter pre-training than the demo's: 6 epochs with a higher learning rate instead of 17.
"""

import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import new_classes
import pytest
import tiny

from revvideo.demo.dataset import make_dataset

pytestmark = pytest.mark.slow

DOCS = Path(__file__).resolve().parents[1] / "docs/training.md"
CHECKPOINT = "runs/demo/seed0/checkpoints/checkpoint_epoch_00017.pyth"  # where the docs expect the demo's
PRETRAINING = {
    "SOLVER.MAX_EPOCH": 6,
    "SOLVER.BASE_LR": 1e-3,
    "SOLVER.WARMUP_EPOCHS": 0.5,
    "TRAIN.EVAL_PERIOD": 1000,
    "TEST.ENABLE": False,
}
VIDEOS_PER_CLASS = 20  # to train on, and as many others to test on


def commands_of_the_docs() -> list[list[str]]:
    """The words behind `revvideo` of each command in a block of shell commands."""
    blocks = re.findall(r"^```sh\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines]
    assert all(words[:2] == ["revvideo", "run_net"] for words in commands)
    return [words[1:] for words in commands]


def run(folder: Path, words: list[str]) -> tuple[float, float]:
    """A command in a process of its own on two threads; wall and CPU seconds."""
    program = "import sys; from revvideo.cli.main import main; sys.exit(main(sys.argv[1:]))"
    environ = os.environ | {"OMP_NUM_THREADS": "2"}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=folder, env=environ, capture_output=True, text=True
    )
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def pretrain(folder: Path) -> None:
    """Leave a checkpoint of the demo's model where the demo would leave its last one."""
    make_dataset(folder / "data", seed=0, train_per_class=60, test_per_class=1, num_processes=1)
    own = {"DATA.PATH_TO_DATA_DIR": folder / "data", "OUTPUT_DIR": folder / "pretraining"}
    words = [str(word) for pair in (own | PRETRAINING).items() for word in pair]
    wall, cpu = run(folder, ["run_net", "--cfg", "demo/REV_MVIT_DEMO", *words])
    print(f"\npre-training: {wall:.0f} s ({cpu:.0f} s of CPU)")
    (folder / CHECKPOINT).parent.mkdir(parents=True)
    shutil.copy(folder / "pretraining/checkpoints/checkpoint_epoch_00006.pyth", folder / CHECKPOINT)


def test_three_classes_with_twenty_videos_each(tmp_path):
    fine_tuning, evaluation = commands_of_the_docs()
    assert CHECKPOINT in fine_tuning
    pretrain(tmp_path)
    new_classes.write_new_classes(tmp_path / "mine", train_per_class=VIDEOS_PER_CLASS, test_per_class=VIDEOS_PER_CLASS)
    wall, cpu = run(tmp_path, fine_tuning)
    results = tmp_path / "runs/mine/results.json"
    figures = json.loads(results.read_text(encoding="utf-8"))
    print(f"fine-tuning and evaluation: {wall:.0f} s ({cpu:.0f} s of CPU), top-1 {figures['top1_acc_all']:.1f} %")
    assert figures["num_videos"] == len(new_classes.CLASS_NAMES) * VIDEOS_PER_CLASS
    assert figures["top1_acc_all"] >= 80.0
    assert wall < 180
    assert len(tiny.losses(tmp_path / "runs/mine")) == 12 * 7  # 60 videos, 8 a step

    run(tmp_path, evaluation)
    again = json.loads(results.read_text(encoding="utf-8"))
    assert again["num_views"] == 10
    assert again["top1_acc_all"] >= 80.0
