"""`revvideo submit` up to the point where something is submitted: what it would hand on, without Slurm."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tiny

from revvideo.launch import batch_script, preflight
from revvideo.launch import submit as submit_module
from revvideo.launch.resources import Resources
from revvideo.launch.submission import Member, Submission


@dataclass
class Submitted:
    """What `submit` was called with.

    Attributes:
        cfgs: (config, keys that a sweep sets) of each member; empty if nothing was submitted.
        options: all other arguments.
    """

    cfgs: list = field(default_factory=list)
    options: dict = field(default_factory=dict)
    resources: Resources | None = None

    @property
    def cfg(self):
        """The config of the only run."""
        ((cfg, _),) = self.cfgs
        return cfg


def catch_submissions(monkeypatch: pytest.MonkeyPatch, *, plan_memory: bool = False) -> Submitted:
    """From here on `submit` only writes down what it gets; Slurm is taken to be there."""
    caught = Submitted()

    def submit(cfgs, resources, **options) -> Submission:
        caught.cfgs, caught.resources, caught.options = list(cfgs), resources, options
        folder = Path(options["run_folder"]) / "launch/001"
        members = tuple(Member(cfg.OUTPUT_DIR, values) for cfg, values in cfgs)
        jobs = tuple(str(17 + number) for number in range(options["chain"]))
        return Submission(folder, options["cluster"], members, resources, jobs=jobs)

    monkeypatch.setattr(submit_module, "submit", submit)
    monkeypatch.setattr(batch_script, "check_slurm", lambda: None)
    if not plan_memory:
        monkeypatch.setattr(preflight, "memory_line", lambda cfg, resources: "memory: 1 GiB")
    return caught


def submit_words(folder: Path, *words: object, data: Path | str = "") -> tiny.Outcome:
    """`revvideo submit WORDS...` with the tiny config in the run folder `folder`; without `data` no list is read."""
    look = [] if data else ["--no-check"]
    own = {"DATA.PATH_TO_DATA_DIR": data} if data else {}
    keys = tiny.overrides(own, {"OUTPUT_DIR": folder})
    return tiny.command("submit", "--cfg", "demo/REV_MVIT_DEMO", *keys, *look, *words)
