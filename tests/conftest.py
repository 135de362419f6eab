"""What all tests share: which ones run here, a clean environment, the local clips, a writer of small videos."""

import os
from fractions import Fraction
from pathlib import Path

import pytest

# Tests start plain processes, also where somebody runs them inside a Slurm job or under torchrun.
LAUNCHER_PREFIXES = ("SLURM_", "SUBMITIT_", "TORCHELASTIC_")
LAUNCHER_NAMES = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"}
for variable in list(os.environ):
    if variable in LAUNCHER_NAMES or variable.startswith(LAUNCHER_PREFIXES):
        del os.environ[variable]


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "slurm" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("slurm"):
            item.add_marker("slurm_short")
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items:
        import torch

        if not torch.cuda.is_available():
            for item in gpu_items:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def clips_folder() -> Path:
    """The folder that REVVIDEO_CLIPS names: videos with ground truth that are never part of the repository."""
    folder = os.environ.get("REVVIDEO_CLIPS")
    if not folder:
        pytest.skip("REVVIDEO_CLIPS names no folder of clips")
    return Path(folder)


@pytest.fixture(scope="session")
def write_video():
    """A function that encodes uint8 frames (T, H, W, 3) as H.264 with even H and W."""

    def write(path: Path, frames, frames_per_second: int = 30, key_frame_every: int = 30) -> Path:
        import av

        _, height, width, _ = frames.shape
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=Fraction(frames_per_second))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.options = {"preset": "ultrafast", "g": str(key_frame_every)}
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A tiny data set in Kinetics format (tests/tiny.py). Read only."""
    import tiny

    return tiny.write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """Folder and outcome of a run of two epochs with validation and a test on `data`. Read only."""
    import tiny

    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, tiny.done(tiny.run_net(data, folder, tiny.RANDOM, {"SOLVER.MAX_EPOCH": 2, "LOG_PERIOD": 1}))


@pytest.fixture(scope="session")
def slurm():
    """A local Slurm cluster of two nodes and a spare one (tests/slurm_cluster.py), for all tests of the session."""
    from slurm_cluster import cluster

    with cluster(nodes=2, spare=1) as running:
        yield running


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Slurm's commands, first on PATH, which answer as the test says (tests/fake_slurm.py)."""
    from fake_slurm import FakeSlurm

    made = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(made.folder), prepend=os.pathsep)
    return made
