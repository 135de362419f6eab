"""Every list that PySlowFast reads is read alike; every other one is one readable error."""

import subprocess
import sys

import pytest

from revvideo.data.manifest import Manifest, check_files, read_manifest, require_files
from revvideo.errors import InputError


def write_list(folder, *lines):
    path = folder / "train.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_two_columns_and_prefix(tmp_path):
    manifest = read_manifest(write_list(tmp_path, "a/x.mp4 0", "/abs/y.mp4 3"), prefix="/videos", num_classes=4)
    assert manifest.paths == ("/videos/a/x.mp4", "/abs/y.mp4")
    assert manifest.labels == (0, 3)
    assert len(manifest) == 2
    assert manifest.source.endswith("train.csv")


def test_three_columns_one_column_other_separators_blank_lines(tmp_path):
    assert read_manifest(write_list(tmp_path, "x.mp4,77,2"), separator=",").labels == (2,)
    assert read_manifest(write_list(tmp_path, "x.mp4", "", "y.mp4")).labels == (0, 0)
    manifest = read_manifest(write_list(tmp_path, "my video.mp4,1", ""), separator=",", prefix="/v")
    assert (manifest.paths, manifest.labels) == (("/v/my video.mp4",), (1,))


def test_relative_paths(tmp_path, monkeypatch):
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    data.mkdir()
    elsewhere.mkdir()
    source = write_list(data, "x.mp4 0", "gone.mp4 1")
    (data / "x.mp4").write_bytes(b"x")
    monkeypatch.chdir(elsewhere)
    assert read_manifest(source).paths == (str(data / "x.mp4"), str(data / "gone.mp4"))
    (elsewhere / "x.mp4").write_bytes(b"x")  # PySlowFast's meaning wins where it finds something
    assert read_manifest(source).paths == ("x.mp4", "gone.mp4")
    assert read_manifest(source, prefix="videos").paths == ("videos/x.mp4", "videos/gone.mp4")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([""], r"train\.csv is empty"),
        (["x.mp4 0", "y.mp4 one"], r"train\.csv, line 2: 'y\.mp4 one'.*'one' is no integer.*PATH_LABEL_SEPARATOR"),
        (["x.mp4 0", "y.mp4"], r"line 2: 'y\.mp4' has no label"),
        (["x.mp4,0"], r"line 1.*separated by ','.*PATH_LABEL_SEPARATOR is ' '"),
        (["my holiday in may.mp4 0"], r"5 columns.*must not contain the separator.*PATH_LABEL_SEPARATOR"),
        (["x.mp4 0", "y.mp4 7", "z.mp4 9"], r"line 2.*label 7.*0\.\.4 \(MODEL\.NUM_CLASSES is 5\).*largest.*9"),
        (["x.mp4 -1"], r"label -1; expected 0\.\.4"),
    ],
)
def test_wrong_lists_are_one_readable_error(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        read_manifest(write_list(tmp_path, *lines), num_classes=5)


def test_missing_and_binary_lists(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.csv.*PATH_TO_DATA_DIR"):
        read_manifest(str(tmp_path / "nowhere.csv"))
    (tmp_path / "binary.csv").write_bytes(bytes(range(128, 256)))
    with pytest.raises(InputError, match=r"binary\.csv is not a text file"):
        read_manifest(str(tmp_path / "binary.csv"))


def test_missing_videos_are_returned_or_refused(tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"x")
    here, gone = str(tmp_path / "x.mp4"), str(tmp_path / "no" / "y.mp4")
    assert check_files(Manifest((here, gone), (0, 0), "list")) == [gone]
    assert require_files(Manifest((here, gone), (0, 0), "list")) == [gone]
    with pytest.raises(InputError, match=r"none of the 1 videos.*does not exist.*DATA\.PATH_PREFIX"):
        require_files(Manifest((gone,), (0,), "list"))


def test_no_torch_is_imported():
    code = "import sys; import revvideo.data.manifest; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
