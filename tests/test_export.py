"""Export: files that need no revvideo, bound to their check on real clips."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image
from reduced_models import NUM_CLASSES, clips_for, reduced_model
from torch import nn
from videos import numbered_frames, write_video

from revvideo.build import build_model
from revvideo.config import load_config
from revvideo.errors import CheckFailed, InputError
from revvideo.export import formats, job
from revvideo.export.formats import FORMATS, ONNX_PACKAGES, format_of
from revvideo.export.job import ExportedFile, export_model, read_clips
from revvideo.export.parity import LIMIT, batches, compare
from revvideo.export.program import trace
from revvideo.models.depthwise_pooling import depthwise_pool
from revvideo.models.input_spec import InputSpec
from revvideo.predict.model_source import LoadedModel

MISSING = [package for package in ONNX_PACKAGES if find_spec(package) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)} (the extra export)")
SUFFIXES = [".pt2", pytest.param(".onnx", marks=needs_onnx)]
NAMES = tuple(f"class {number}" for number in range(NUM_CLASSES))


def loaded_model(model: nn.Module) -> LoadedModel:
    """A model with the input that its `input_spec` says, cropped from a short side of 1/8 more."""
    spec = model.input_spec
    side = spec.size[0]
    values = {
        "MODEL.MODEL_NAME": "MViT",
        "NUM_GPUS": 0,
        "DATA.NUM_FRAMES": spec.frames,
        "DATA.SAMPLING_RATE": spec.stride,
        "DATA.TRAIN_CROP_SIZE": side,
        "DATA.TEST_CROP_SIZE": side,
        "DATA.TRAIN_JITTER_SCALES": [side * 9 // 8] * 2,
        "DATA.DECODING_BACKEND": "pyav",
        "DATA.INPUT_CHANNEL_NUM": [3],
        "DATA.MEAN": list(spec.mean),
        "DATA.STD": list(spec.std),
        "TEST.DATASET": "imagenet" if spec.image else "kinetics",
    }
    return LoadedModel(model.eval(), load_config(None, values), NAMES, "folder/weights.pyth", torch.device("cpu"))


class Small(nn.Module):
    """Two layers, so that what is not about a network takes no time."""

    def __init__(self, activation=torch.tanh):
        super().__init__()
        self.input_spec, self.activation = InputSpec(4, 2, (16, 16)), activation
        torch.manual_seed(3)
        self.project = nn.Conv3d(3, NUM_CLASSES, (2, 4, 4), (2, 4, 4))

    def forward(self, clips):
        return self.activation(self.project(clips)).mean((2, 3, 4))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three videos, as many pictures, and a file that is neither."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(3):
        write_video(folder / f"{number}.mp4", 30, seed=number)
        Image.fromarray(numbered_frames(1, seed=number)[0]).save(folder / f"{number}.png")
    (folder / "text.mp4").write_text("no video")
    return folder


def files_that_equal_the_model(loaded, files, videos) -> list[ExportedFile]:
    """Export, and hold each file against the model on clips that the export has not seen, in several batch sizes."""
    made = list(export_model(loaded, files, [videos]))
    for written in made:
        assert written.parity.num_clips == (3 if loaded.is_image else 6)
        assert 0 <= written.parity.difference <= LIMIT * written.parity.magnitude
        assert written.parity.magnitude > 0
        assert written.batch_size is None
        run = format_of(written.path).open(written.path).run
        for batch in (1, 2, 5):
            clips = clips_for(loaded.model, batch)
            with torch.no_grad():
                assert compare(run(clips), loaded.model(clips)).holds
    assert sorted(files[0].parent.iterdir()) == sorted(files)  # the weights are in the files
    return made


def both_formats(folder: Path) -> list[Path]:
    """A torch.export file and, where the packages are there, an ONNX file."""
    return [folder / "model.pt2"] if MISSING else [folder / "model.pt2", folder / "model.onnx"]


def two_blocks(config: str) -> LoadedModel:
    """The model of a shipped config, cut down to two narrow blocks, the second of which begins a stage."""
    queries = [[1, 1, 2, 2]] if "REV" in config else [[0, 1, 1, 1], [1, 1, 2, 2]]
    reduced = {
        "DATA.NUM_FRAMES": 4,
        "DATA.TRAIN_CROP_SIZE": 32,
        "DATA.TEST_CROP_SIZE": 32,
        "DATA.TRAIN_JITTER_SCALES": [36, 36],
        "MODEL.NUM_CLASSES": NUM_CLASSES,
        "MVIT.DEPTH": 2,
        "MVIT.EMBED_DIM": 16,
        "MVIT.DIM_MUL": [[1, 2.0]],
        "MVIT.HEAD_MUL": [[1, 2.0]],
        "MVIT.POOL_Q_STRIDE": queries,
        "MVIT.POOL_KV_STRIDE_ADAPTIVE": [1, 4, 4],
        "MVIT.REV.BUFFER_LAYERS": [1] if "REV" in config else [],
        "NUM_GPUS": 0,
    }
    cfg = load_config(config, reduced)
    torch.manual_seed(0)
    return LoadedModel(build_model(cfg).eval(), cfg, NAMES, "weights.pyth", torch.device("cpu"))


@pytest.fixture(scope="module")
def rev_files(videos, tmp_path_factory) -> list[ExportedFile]:
    """Rev-MViT-B, reduced, as a torch.export file and, where that can be, an ONNX file, in a folder that is new."""
    loaded = two_blocks("Kinetics/REV_MVIT_B_16x4_CONV")
    before = [getattr(module, "options", None) for module in loaded.model.modules()]
    folder = tmp_path_factory.mktemp("rev") / "new"
    made = files_that_equal_the_model(loaded, both_formats(folder), videos)
    assert [getattr(module, "options", None) for module in loaded.model.modules()] == before
    return made


def test_a_torch_program_equals_rev_mvit(rev_files):
    assert rev_files[0].format == "torch.export"


@needs_onnx
def test_an_onnx_file_equals_rev_mvit(rev_files):
    assert rev_files[1].format == "ONNX"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mvitv2_s_16x4", "rev_mvit_b_16x4", "rev_mvit_b", "ptv/x3d_xs"])
def test_files_of_whole_architectures_equal_the_model(name, videos, tmp_path):
    files_that_equal_the_model(loaded_model(reduced_model(name)), both_formats(tmp_path), videos)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_file_says_what_it_takes_and_gives(suffix, videos, tmp_path):
    loaded = loaded_model(Small())
    (written,) = export_model(loaded, [tmp_path / f"model{suffix}"], [videos])
    told = format_of(written.path).open(written.path).contract
    assert told["class_names"] == list(NAMES)
    assert told["input"]["layout"] == "BCTHW"
    assert told["input"]["shape"] == [None, 3, 4, 16, 16]
    assert (told["input"]["frames"], told["input"]["stride"], told["input"]["size"]) == (4, 2, [16, 16])
    assert tuple(told["input"]["mean"]) == loaded.model.input_spec.mean
    assert tuple(told["input"]["std"]) == loaded.model.input_spec.std
    assert (told["output"]["num_classes"], told["output"]["activation"]) == (NUM_CLASSES, "softmax")
    assert told["checkpoint"] == "weights.pyth"  # no path of this machine


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_batch_size_that_is_asked_for(suffix, videos, tmp_path):
    (written,) = export_model(loaded_model(Small()), [tmp_path / f"model{suffix}"], [videos], batch_size=4)
    assert written.batch_size == 4
    assert written.parity.num_clips == 6  # 4, and 2 in a batch that is filled up
    opened = format_of(written.path).open(written.path)
    assert opened.contract["input"]["shape"][0] == 4
    assert opened.run(torch.zeros(4, 3, 4, 16, 16)).shape == (4, NUM_CLASSES)


class OneByOne(Small):
    """The number of clips is a constant of its program."""

    def forward(self, clips):
        return torch.stack([super(OneByOne, self).forward(clips[i : i + 1])[0] for i in range(len(clips))])


def test_a_model_whose_batch_cannot_vary_is_exported_for_one_clip(videos, tmp_path, caplog):
    (written,) = export_model(loaded_model(OneByOne()), [tmp_path / "model.pt2"], [videos])
    assert written.batch_size == 1
    assert written.parity.holds
    assert "the batch of this model cannot vary" in caplog.text


@pytest.mark.slow
def test_a_torch_file_runs_where_there_is_no_revvideo(rev_files, tmp_path):
    code = (
        "import json, sys; sys.modules['revvideo'] = None\nimport torch\nextra = {'revvideo.json': ''}\n"
        f"module = torch.export.load({str(rev_files[0].path)!r}, extra_files=extra).module()\n"
        "shape = json.loads(extra['revvideo.json'])['input']['shape'][1:]\n"
        "print(tuple(module(torch.zeros(3, *shape)).shape))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == str((3, NUM_CLASSES)), done.stderr


def test_a_file_holds_torch_operators_and_no_clip_and_no_path_of_this_machine(rev_files):
    for written in rev_files:
        assert str(Path(__file__).parents[1]).encode() not in written.path.read_bytes()
    program = torch.export.load(rev_files[0].path)
    assert not any("revvideo" in str(node.target) for node in program.graph.nodes)
    (example,), _ = program.example_inputs
    assert not example.any()
    assert example.untyped_storage().nbytes() == 4


# What is refused


def pooled(volume):
    kernel = torch.ones(NUM_CLASSES, 1, 1, 3, 3)
    return depthwise_pool(volume, kernel, (1, 1, 1), (0, 1, 1), operator="taps")


@pytest.mark.parametrize("batch_size", [None, 2])
def test_an_operator_that_is_not_torchs_own_is_refused(batch_size):
    with pytest.raises(InputError, match=r"not torch's own.*revvideo\.depthwise_pool\.default"):
        trace(Small(pooled).eval(), (3, 4, 16, 16), batch_size=batch_size)


def test_a_model_that_cannot_be_traced_is_refused():
    model = Small(lambda x: x if x.sum() > 0 else -x).eval()
    with pytest.raises(InputError, match=r"torch\.export cannot trace this Small"):
        trace(model, (3, 4, 16, 16))


@needs_onnx
def test_an_operator_that_onnx_lacks_is_refused(videos, tmp_path):
    with pytest.raises(
        InputError, match=r"ONNX has no counterpart of the operators \w+\.\w*bessel_j0; write .* \(\.pt2\)"
    ):
        list(export_model(loaded_model(Small(torch.special.bessel_j0)), [tmp_path / "model.onnx"], [videos]))
    assert not list(tmp_path.iterdir())


def test_a_file_whose_logits_differ_is_not_kept(videos, tmp_path, monkeypatch):
    file = tmp_path / "model.pt2"
    file.write_text("of another time")
    monkeypatch.setattr(job, "compare", lambda actual, expected: compare(actual * (1 + 3 * LIMIT), expected))
    with pytest.raises(CheckFailed, match="would not give the model's logits"):
        list(export_model(loaded_model(Small()), [file], [videos]))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert file.read_text() == "of another time"


def test_logits_that_are_no_numbers_fail_the_check():
    right = torch.ones(2, 3)
    assert compare(right, right).holds
    assert compare(right * (1 + LIMIT / 2), right).holds
    assert not compare(right * (1 + 2 * LIMIT), right).holds
    assert not compare(right * float("nan"), right).holds
    assert not compare(right, right * float("nan")).holds


def test_a_suffix_without_a_format_and_packages_that_are_missing(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"suffix is '\.pb'; expected \.pt2 .* or \.onnx"):
        format_of(tmp_path / "model.pb")
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"ONNX needs onnx, onnxscript, onnxruntime.*revvideo\[export\]"):
        format_of(tmp_path / "model.onnx")
    assert format_of(tmp_path / "model.pt2") is FORMATS[".pt2"]


# The clips


def test_videos_that_cannot_be_read_are_left_out_and_named(videos, caplog):
    loaded = loaded_model(Small())
    assert read_clips(loaded, [videos]).shape == (6, 3, 4, 16, 16)
    assert "text.mp4" in caplog.text
    with pytest.raises(InputError, match=r"none of the 1 videos.*text\.mp4"):
        read_clips(loaded, [videos / "text.mp4"])


@pytest.mark.parametrize("num_clips", [1, 2, 6, 7])
@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_every_clip_is_in_one_batch(num_clips, batch_size):
    parts = batches(num_clips, batch_size)
    assert [clip for part in parts for clip in part] == list(range(num_clips))
    if batch_size is not None:
        assert all(len(part) <= batch_size for part in parts)
    elif num_clips > 2:
        assert len({len(part) for part in parts}) > 1


# The command


def test_the_command_exports_the_checkpoint_of_a_run(data, finished, tmp_path):
    folder, _ = finished
    words = ["--checkpoint", folder, "--videos", data / "test0.mp4", data / "test5.mp4"]
    made = tiny.done(tiny.command("export", *words, "--out", tmp_path / "model.pt2"))
    assert re.search(r"torch\.export, .* batches of any size\n  largest difference of logits .* on 4 clips", made.out)
    opened = format_of(tmp_path / "model.pt2").open(tmp_path / "model.pt2")
    assert opened.contract["output"]["num_classes"] == tiny.NUM_CLASSES
    assert opened.contract["input"]["shape"] == [None, 3, 4, 32, 32]


@pytest.mark.slow
def test_the_command_prints_json(data, finished, tmp_path):
    words = ["--checkpoint", finished[0], "--videos", data / "test0.mp4", data / "test5.mp4"]
    made = tiny.done(tiny.command("export", *words, "--batch-size", 2, "--out", tmp_path / "two.pt2", "--json"))
    (found,) = json.loads(made.out)
    assert (found["format"], found["batch_size"], found["clips"]) == ("torch.export", 2, 4)
    assert found["max_difference"] <= LIMIT * found["max_logit"]


def test_the_command_refuses_before_it_reads_the_weights(data, tmp_path):
    refused = tiny.command("export", "--checkpoint", "none.pyth", "--videos", data, "--out", tmp_path / "model.bin")
    assert refused.code == 2
    assert "expected .pt2" in refused.err
