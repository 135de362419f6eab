"""The demo: write the data set, train on it, evaluate, probe, and say what came out."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from fvcore.common.config import CfgNode

from revvideo import build, jobs
from revvideo.benchmark.memory import peak_training_bytes
from revvideo.config import load_config
from revvideo.demo import probes
from revvideo.demo.dataset import CLASS_NAMES, DatasetPaths, make_dataset
from revvideo.engine.progress import Progress, duration

logger = logging.getLogger(__name__)

CONFIG = "demo/REV_MVIT_DEMO"
TRAIN_PER_CLASS, TEST_PER_CLASS = 60, 24
MIB = 2**20


@dataclass(frozen=True)
class Figure:
    """One line of the final table; `low` and `high` bound what a healthy run gives, in percent."""

    name: str
    percent: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        return self.low <= self.percent <= self.high

    def __str__(self) -> str:
        if self.high == 100:
            expected = f"at least {self.low:.0f}"
        elif self.low == 0:
            expected = f"at most {self.high:.0f}"
        else:
            expected = f"{self.low:.0f} to {self.high:.0f}"
        return f"{self.name:<66}{self.percent:7.2f} %   expected {expected}{'' if self.holds else '   MISSED'}"


@dataclass(frozen=True)
class Report:
    """What a demo run found."""

    figures: list[Figure]
    num_videos: int
    reversible_mib: float
    plain_mib: float
    data_seconds: float
    train_seconds: float
    test_seconds: float
    cfg: CfgNode
    data: DatasetPaths

    def text(self, program: str = "revvideo") -> str:
        """The table; `program` is how the commands in it call revvideo."""
        batch, folder = self.cfg.TRAIN.BATCH_SIZE, self.cfg.OUTPUT_DIR
        again = f"{program} run_net --cfg {folder}/config.yaml"
        total = self.data_seconds + self.train_seconds + self.test_seconds
        return "\n".join(
            [
                "",
                f"{self.num_videos} test videos, {self.cfg.TEST.NUM_ENSEMBLE_VIEWS} views each",
                *(str(figure) for figure in self.figures),
                f"peak training memory, batch {batch}: {self.reversible_mib:.1f} MiB reversible, "
                f"{self.plain_mib:.1f} MiB plain backprop ({self.plain_mib / self.reversible_mib:.1f} x)",
                f"time: {duration(total)} (data {duration(self.data_seconds)}, training "
                f"{duration(self.train_seconds)}, evaluation and probes {duration(self.test_seconds)})",
                f"data: {self.data.root}",
                f"run:  {folder}",
                *([f"report: {folder}/report.html"] if self.cfg.RUN.REPORT else []),
                f"evaluate again:  {again} TRAIN.ENABLE False",
                f"train further:   {again} SOLVER.MAX_EPOCH {2 * self.cfg.SOLVER.MAX_EPOCH}",
            ]
        )


def run_demo(
    root: Path,
    *,
    seed: int = 0,
    train_per_class: int = TRAIN_PER_CLASS,
    test_per_class: int = TEST_PER_CLASS,
    overrides: tuple = (),
) -> Report:
    """Run the demo in `root`: the data set in `data_seed{seed}`, the run in `seed{seed}`; both are reused.

    Other numbers of videos than the default ones go into folders of their own.

    Args:
        root: folder of all demo runs.
        seed: of the data and of the training.
        train_per_class, test_per_class: videos of each of the 8 classes.
        overrides: config keys and values on top of the shipped demo config.
    """
    began = time.perf_counter()
    num_videos = len(CLASS_NAMES) * (train_per_class + test_per_class)
    name = f"seed{seed}"
    if (train_per_class, test_per_class) != (TRAIN_PER_CLASS, TEST_PER_CLASS):
        name += f"_{train_per_class}x{test_per_class}"
    with Progress(num_videos, "write the videos", log_period=100, logger=logger) as progress:
        data = make_dataset(
            root / f"data_{name}",
            seed=seed,
            train_per_class=train_per_class,
            test_per_class=test_per_class,
            num_processes=2,
            progress=lambda done, total: progress.update(done - progress.done),
        )
    data_at = time.perf_counter()
    own = ["DATA.PATH_TO_DATA_DIR", str(data.root), "OUTPUT_DIR", str(root / name), "RNG_SEED", seed]
    cfg = load_config(CONFIG, [*own, *overrides])
    with jobs.start(cfg) as run:
        jobs.train(run)
        trained_at = time.perf_counter()
        results = jobs.test(run)
        figures = [
            Figure("(a) top-1", results["top1_acc_all"], 90, 100),
            *_probe(run, seed),
        ]
        tested_at = time.perf_counter()
        memory = {mode: _peak_mib(cfg, mode) for mode in ("reversible", "plain")}
        report = Report(
            figures=figures,
            num_videos=results["num_videos"],
            reversible_mib=memory["reversible"],
            plain_mib=memory["plain"],
            data_seconds=data_at - began,
            train_seconds=trained_at - data_at,
            test_seconds=tested_at - trained_at,
            cfg=cfg,
            data=data,
        )
        run.events.write("demo", **{figure.name: figure.percent for figure in figures}, memory_mib=memory)
        jobs.report(run)
    return report


def _probe(run: jobs.Run, seed: int) -> list[Figure]:
    model, *_ = jobs.load_tested_model(run)

    def scores(edit_views, name: str):
        arrays = jobs.evaluate_edited(run, model, edit_views, name).arrays()
        return arrays["scores"], arrays["label"]

    backwards, labels = scores(probes.reverse, "backwards")
    shuffled, _ = scores(probes.Shuffle(seed), "shuffled")
    still, _ = scores(probes.hold_middle_frame, "still")
    return [
        Figure(
            "(b) top-1 of the clips run backwards, against the partner class",
            probes.top1_percent(backwards, probes.partners(labels)),
            *(85, 100),
        ),
        Figure("(c) right one of the pair, frames shuffled", probes.within_pair_percent(shuffled, labels), 35, 65),
        Figure("(d) top-1 from the middle frame alone", probes.top1_percent(still, labels), 0, 30),
    ]


def _peak_mib(cfg: CfgNode, backprop: str) -> float:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.REV.BACKPROP = backprop
    device, size = build.choose_device(cfg), cfg.DATA.TRAIN_CROP_SIZE
    model = build.build_model(cfg).to(device).train()
    clips = torch.randn(cfg.TRAIN.BATCH_SIZE, 3, cfg.DATA.NUM_FRAMES, size, size, device=device)
    labels = torch.arange(len(clips), device=device) % cfg.MODEL.NUM_CLASSES
    return peak_training_bytes(model, clips, labels) / MIB
