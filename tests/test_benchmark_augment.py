"""The RandAugment benchmark: both sides do the same work, and the command prints its verdict."""

import numpy as np
import pytest

from revvideo.benchmark import augment as benchmark
from revvideo.data.rand_augment import OPERATIONS, Operation, RandAugment, argument_of, parse_policy
from revvideo.data.transforms import as_clip

pytest.importorskip("torchvision")


@pytest.mark.parametrize("name", OPERATIONS)
def test_torchvision_is_asked_for_the_same(name):
    clip = as_clip(benchmark.generated_clip(2, 60, 80, seed=0) // 2 + 40)  # room for AutoContrast
    argument = argument_of(name, 7, True, np.random.default_rng(0))
    plan = [Operation(name, argument, "bilinear")]
    ours, theirs = RandAugment(parse_policy("rand")).apply(clip, plan), benchmark.by_torchvision(clip, plan)
    assert (ours.int() - clip.int()).abs().float().mean() > 0.3  # something was done at all
    assert (ours.int() - theirs.int()).abs().float().mean() < 1.5  # torchvision softens the border of the fill


def test_the_command(capsys):
    benchmark.main(["--clips", "2", "--frames", "2", "--size", "32", "40", "--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(OPERATIONS)]] == list(OPERATIONS)
    assert lines[-1].startswith("rand-m7-n4-mstd0.5-inc1, 2 clips of (2, 32, 40): ")
