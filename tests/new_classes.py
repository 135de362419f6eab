"""Videos of three classes that the demo does not have, made of its scenes: to fine-tune the demo's model on.

Two of them are each other's time reversal, as the demo's pairs are, and all three share one distribution of frames half
way through the video: what tells them apart is motion.
"""

import dataclasses
from pathlib import Path

import tiny

from revvideo.demo.dataset import video_generator, write_video
from revvideo.demo.scenes import Scene, draw_scene, render

CLASS_NAMES = ("moves_up_right", "moves_down_left", "turns_and_grows")
SEED = 1000  # the demo's own sets have small ones


def draw_new_scene(split: str, label: int, number: int) -> Scene:
    """The scene of video `number` of class `label`."""

    def drawn(pair_index: int) -> Scene:  # of equal generators: these scenes differ in their motion alone
        return draw_scene(video_generator(SEED, split, label, number), pair_index)

    moves, turns, grows = drawn(0), drawn(2), drawn(3)
    if label == 2:
        return dataclasses.replace(turns, growth=grows.growth)
    step = abs(moves.travel[0]) * (0.5**0.5 if label == 0 else -(0.5**0.5))  # to the right, and as much up
    return dataclasses.replace(moves, travel=(step, -step))


def write_new_classes(root: Path, *, train_per_class: int, test_per_class: int) -> Path:
    """Kinetics lists train.csv, val.csv and test.csv (the same videos) in `root`, and their videos in it."""
    for split, count in (("train", train_per_class), ("test", test_per_class)):
        rows = []
        for label, name in enumerate(CLASS_NAMES):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                path = f"{split}/{name}/{number:03d}.mp4"
                write_video(root / path, render(draw_new_scene(split, label, number)))
                rows.append((path, label))
        for file in ("train",) if split == "train" else ("val", "test"):
            tiny.write_list(root / f"{file}.csv", rows)
    return root
