"""Every list that PySlowFast reads is read alike, every other one is one readable error; missing files are counted."""

import os
import subprocess
import sys

import pytest

from revvideo.data import manifest as manifest_module
from revvideo.data.manifest import Manifest, check_files, read_manifest, require_files, write_missing
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


def many_files(folder, count=20):
    folder.mkdir()
    paths = [str(folder / f"{number}.mp4") for number in range(count)]
    for path in paths:
        with open(path, "w"):
            pass
    return paths


def test_one_look_into_a_folder_gives_what_asking_for_each_file_gives(tmp_path, monkeypatch):
    paths = many_files(tmp_path / "full")
    os.unlink(paths[3])
    os.unlink(paths[5])
    os.symlink(paths[4], paths[5])  # there, through a link
    os.unlink(paths[6])
    os.symlink(tmp_path / "nowhere", paths[6])  # a link to nothing is no video
    os.unlink(paths[7])
    os.mkdir(paths[7])  # a frame folder
    paths += [str(tmp_path / "gone" / f"{number}.mp4") for number in range(20)]
    paths += [str(tmp_path / "full" / "0.mp4" / f"{number}") for number in range(20)]
    paths.insert(0, str(tmp_path / "full" / ".." / "full" / "1.mp4"))
    expected = [path for path in paths if not os.path.exists(path)]
    assert len(expected) == 42
    assert check_files(Manifest(tuple(paths), (0,) * len(paths), "list")) == expected
    asked = []
    real = manifest_module.path_manager.exists
    monkeypatch.setattr(manifest_module.path_manager, "exists", lambda path: asked.append(path) or real(path))
    assert check_files(Manifest(tuple(paths), (0,) * len(paths), "list")) == expected
    assert set(asked) == {paths[0], *(paths[row + 1] for row in (3, 5, 6))}  # the few that the look did not settle


def test_relative_paths_are_checked_in_the_current_folder(tmp_path, monkeypatch):
    many_files(tmp_path / "full")
    monkeypatch.chdir(tmp_path / "full")
    names = tuple(f"{number}.mp4" for number in range(21))
    assert check_files(Manifest(names, (0,) * 21, "list")) == ["20.mp4"]


def test_what_is_missing_is_written(tmp_path):
    path = tmp_path / "missing.txt"
    manifest = Manifest(("a.mp4", "my b.mp4", "c.mp4"), (3, 4, 5), "val.csv")
    write_missing(manifest, ["my b.mp4", "c.mp4"], path)
    assert path.read_text() == "# 2 of 3 videos of val.csv do not exist\nmy b.mp4\t4\nc.mp4\t5\n"
    again = read_manifest(str(path), separator="\t")  # it is a list: what it names can be fetched and evaluated
    assert (again.paths, again.labels) == (("my b.mp4", "c.mp4"), (4, 5))
    write_missing(manifest, [], path)
    assert not path.exists()
    write_missing(manifest, [], path)


def test_neither_torch_nor_numpy_is_imported():
    code = (
        "import sys; from revvideo.data.manifest import read_split; import revvideo.data.lists.write_split;"
        "print(sorted({'torch', 'numpy', 'av'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
