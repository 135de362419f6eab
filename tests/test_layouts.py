"""Trees and folders of videos: splits, class numbers, replacements, what is ambiguous and what is missing."""

import json
import logging
import os
import re
import threading
from collections import Counter
from pathlib import Path

import pytest

from revvideo.data.manifest import check_files, read_manifest, read_split, require_files
from revvideo.errors import InputError


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")


def tree_of(root: Path, counts: dict[str, int]) -> None:
    touch(root, *(f"{name}/v{number}.mp4" for name, count in counts.items() for number in range(count)))


def official(root: Path, split: str, *rows: str) -> None:
    (root / f"{split}.csv").write_text("\n".join(["label,youtube_id,time_start,time_end,split", *rows]) + "\n")


def relative(manifest, root: Path) -> list[str]:
    return [os.path.relpath(path, root) for path in manifest.paths]


# Trees with split folders


@pytest.mark.parametrize("val", ["val", "validation", "valid"])
def test_split_folders_and_the_test_split_without_a_folder(tmp_path, val, caplog):
    caplog.set_level(logging.INFO)
    touch(tmp_path, "train/b/1.mp4", "train/a/2.webm", "train/a/readme.txt", f"{val}/b/3.mkv", "train/.hidden/x.mp4")
    train = read_split(tmp_path, "train")
    assert (relative(train, tmp_path), train.labels) == (["train/a/2.webm", "train/b/1.mp4"], (0, 1))
    assert "1 entries below" in caplog.text
    assert "readme.txt" in caplog.text
    for split in ("val", "test"):
        manifest = read_split(tmp_path, split)
        assert (relative(manifest, tmp_path), manifest.labels, manifest.class_names) == (
            [f"{val}/b/3.mkv"],
            (1,),
            ("a", "b"),
        )
    assert "no folder of the test split" in caplog.text
    touch(tmp_path, "test/a/4.mp4")
    assert relative(read_split(tmp_path, "test"), tmp_path) == ["test/a/4.mp4"]
    assert not list(tmp_path.glob("*.csv"))


@pytest.mark.parametrize(
    ("paths", "split", "message"),
    [
        (
            ["train/run/1.mp4", "val/runing/1.mp4"],
            "val",
            r"class 'runing' is not among the 1 of .*train.*nearest is 'run'",
        ),
        (["train/a/1.mp4"], "val", r"no folder of the split 'val'; expected val or validation.*beside train"),
        (["train/a/1.mp4", "val/a/1.mp4", "validation/a/1.mp4"], "val", r"two folders for the split 'val'"),
        (["train/a/1.JPEG", "val/1.JPEG"], "val", r"only files such as 1\.JPEG; expected a folder a class"),
        (["train/a/1.mp4", "val/1.mp4"], "val", r"val has only files such as 1\.mp4; expected a folder a class"),
        (["train/a/1.mp4", "val/a/1.txt"], "val", r"no class folder of .*val \(a, \.\.\.\) holds what was expected"),
        (["a/1.jpg", "b/2.jpg"], "train", r"no folders train/ and val/.*CLASS/VIDEO"),
        (["train/1.mp4"], "train", r"cannot read the list"),
        (["data/a/1.mp4"], "train", r"data has class folders: set LOADER\.VIDEO_FOLDER"),
        (["notes.txt"], "train", r"train\.csv: the folder holds notes\.txt; expected.*DATA\.PATH_TO_DATA_DIR"),
        ([], "train", r"train\.csv: the folder is empty"),
    ],
)
def test_trees_that_cannot_be_read(tmp_path, paths, split, message):
    touch(tmp_path, *paths)
    kind = "imagenet" if "train/a/1.JPEG" in paths else "auto"
    with pytest.raises(InputError, match=message):
        read_split(tmp_path, split, format=kind)


def test_videos_beside_pictures_are_ambiguous_until_named(tmp_path):
    touch(tmp_path, "train/a/1.mp4", "train/a/1.jpg", "train/b/2/1.jpg")
    with pytest.raises(
        InputError, match=r"(?s)fits 3 formats.*LIST_FORMAT.*class_folders: .*1\.mp4.*frame_folders.*imagenet"
    ):
        read_split(tmp_path, "train")
    assert relative(read_split(tmp_path, "train", format="class_folders"), tmp_path) == ["train/a/1.mp4"]
    assert relative(read_split(tmp_path, "train", format="imagenet"), tmp_path) == ["train/a/1.jpg"]
    frames = read_split(tmp_path, "train", format="frame_folders")
    assert (relative(frames, tmp_path), frames.kind) == (["train/b/2"], "frames")


# Trees that are split by seed


def test_a_seeded_split_is_stratified_complete_and_stays(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    counts = {"pull ups": 20, "b": 3, "c": 2, "d": 1, "e": 40}
    tree_of(tmp_path, counts)
    parts = {split: read_split(tmp_path, split) for split in ("train", "val", "test")}
    paths = [path for part in parts.values() for path in part.paths]
    assert sorted(paths) == sorted(str(path) for path in tmp_path.rglob("*.mp4"))  # each once
    of = {
        split: Counter(os.path.basename(os.path.dirname(path)) for path in part.paths) for split, part in parts.items()
    }
    assert of["val"] == {"pull ups": 2, "b": 1, "c": 1, "e": 4}
    assert of["test"] == {"pull ups": 2, "b": 1, "e": 4}
    names = parts["val"].class_names
    assert names == tuple(sorted(counts))
    assert all(names[label] == Path(path).parent.name for path, label in zip(parts["val"].paths, parts["val"].labels))
    assert "classes with too few samples for every split: 2" in caplog.text
    assert "train 51, val 8, test 7" in caplog.text
    # Read again from what was written; and as PySlowFast's list, from anywhere.
    written = (tmp_path / "train.csv").read_bytes()
    assert read_split(tmp_path, "train", seed=3) == parts["train"]
    assert "which stays" in caplog.text
    assert read_manifest(str(tmp_path / "val.csv"), separator=",").paths == parts["val"].paths
    assert json.loads((tmp_path / "split.json").read_text())["samples"] == {"train": 51, "val": 8, "test": 7}
    # Removed, it comes back the same; another seed gives another one.
    for path in [*tmp_path.glob("*.csv"), tmp_path / "split.json"]:
        path.unlink()
    assert read_split(tmp_path, "train", format="class_folders") == parts["train"]
    assert (tmp_path / "train.csv").read_bytes() == written
    for path in [*tmp_path.glob("*.csv"), tmp_path / "split.json"]:
        path.unlink()
    assert read_split(tmp_path, "train", seed=3) != parts["train"]


def test_a_split_without_a_test_part(tmp_path):
    tree_of(tmp_path, {"a": 10})
    val = read_split(tmp_path, "val", val_fraction=0.3, test_fraction=0.0)
    assert len(val) == 3
    assert read_split(tmp_path, "test", val_fraction=0.3, test_fraction=0.0).paths == val.paths
    tree_of(tmp_path / "other", {"a": 2})
    with pytest.raises(InputError, match=r"together less than 1"):
        read_split(tmp_path / "other", "train", val_fraction=0.6, test_fraction=0.5)


def test_an_empty_folder_is_a_class_only_below_a_split_folder(tmp_path, caplog):
    tree_of(tmp_path / "own", {"b": 3, "c": 3})
    touch(tmp_path, "own/annotations/notes.txt", "official/train/b/1.mp4")
    (tmp_path / "official" / "train" / "a").mkdir()
    assert read_split(tmp_path / "own", "train").class_names == ("b", "c")
    assert "without samples: 1 (annotations)" in caplog.text
    manifest = read_split(tmp_path / "official", "train")
    assert (manifest.class_names, manifest.labels) == (("a", "b"), (1,))  # numbers do not depend on what is missing
    assert "without samples: 1 (a)" in caplog.text


def test_frame_folders_are_split_too(tmp_path):
    touch(tmp_path, *(f"a/v{number}/{frame}.jpg" for number in range(5) for frame in range(2)))
    first = read_split(tmp_path, "train")
    assert first.kind == "frames"
    assert read_split(tmp_path, "train") == first
    assert len(first) == 3


def test_processes_that_split_at_once_agree(tmp_path):
    tree_of(tmp_path, dict.fromkeys("abcdefgh", 12))
    found, start = [], threading.Barrier(6)

    def read(split):
        start.wait()
        try:
            found.append((split, read_split(tmp_path, split)))
        except Exception as error:
            found.append((split, error))

    threads = [threading.Thread(target=read, args=(split,)) for split in ("train", "val", "test") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {split for split, _ in found} == {"train", "val", "test"}
    for split, manifest in found:
        assert manifest == read_split(tmp_path, split)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted(
        ["classes.txt", "split.json", "test.csv", "train.csv", "val.csv"]
    )


def test_a_split_that_cannot_be_written_names_the_way_out(tmp_path):
    tree = tmp_path / "tree"
    tree_of(tree, {"a": 4, "b": 4})
    touch(tmp_path, "file")
    with pytest.raises(
        InputError, match=rf"DATA\.PATH_TO_DATA_DIR.*may be empty.*VIDEO_FOLDER to {re.escape(str(tree))}"
    ):
        read_split(tmp_path / "file" / "lists", "train", video_folder=str(tree))
    manifest = read_split(tmp_path / "lists", "train", video_folder=str(tree))  # that way
    assert len(manifest) == 4
    assert sorted(path.name for path in tree.iterdir()) == ["a", "b"]
    assert read_split(tmp_path / "lists", "train", video_folder=str(tree)) == manifest


@pytest.mark.parametrize("name", [b"line\nbreak.mp4", b"latin\xe9.mp4"])
def test_a_name_that_no_list_can_hold(tmp_path, name):
    tree_of(tmp_path, {"a": 4})
    try:
        Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/" + name)).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(InputError, match=r"line break or is no UTF-8"):
        read_split(tmp_path, "train")
    assert not (tmp_path / "split.json").exists()


def test_lists_of_the_user_are_not_written_over(tmp_path):
    tree_of(tmp_path, {"a": 4})
    (tmp_path / "train.csv").write_text("a/v0.mp4 0\n")
    assert relative(read_split(tmp_path, "train"), tmp_path) == ["a/v0.mp4"]  # a list comes before the tree
    with pytest.raises(InputError, match=r"val\.csv: No such file"):
        read_split(tmp_path, "val")
    with pytest.raises(InputError, match=r"train\.csv stands where a split"):
        read_split(tmp_path, "train", format="class_folders")
    (tmp_path / "split.json").write_text("[]")
    with pytest.raises(InputError, match=r"split\.json was not written by revvideo"):
        read_split(tmp_path, "train")
    (tmp_path / "split.json").write_text('{"written_by": "revvideo", "kind": "films"}')
    with pytest.raises(InputError, match=r"split\.json has the kind 'films'"):
        read_split(tmp_path, "train")


# Official Kinetics


def test_replacements_come_first_and_class_folders_decide(tmp_path):
    clip = "abcdefghijk_000001_000011"
    official(tmp_path, "train", "run,abcdefghijk,1,11,train", "walk,abcdefghijk,1,11,train")
    touch(tmp_path, f"train/walk/{clip}.mp4", f"train/run/{clip}.mp4")
    assert relative(read_split(tmp_path, "train"), tmp_path) == [f"train/run/{clip}.mp4", f"train/walk/{clip}.mp4"]
    touch(tmp_path, f"replacement/{clip}.mp4")
    assert relative(read_split(tmp_path, "train"), tmp_path) == [f"replacement/{clip}.mp4"] * 2
    given = read_split(tmp_path, "train", video_folder=str(tmp_path / "train"))
    assert relative(given, tmp_path) == [f"replacement/{clip}.mp4"] * 2
    assert given == read_split(tmp_path, "train", prefix=str(tmp_path / "train"))


def test_class_numbers_are_those_of_the_training_list(tmp_path):
    official(
        tmp_path, "train", "run,abcdefghijk,1,11,train", "eat,Abcdefghijk,1,11,train", "walk,bbcdefghijk,1,11,train"
    )
    official(tmp_path, "validate", "walk,cbcdefghijk,1,11,validate")
    touch(tmp_path, "val/cbcdefghijk_000001_000011.mp4")
    for split in ("val", "test"):
        manifest = read_split(tmp_path, split)
        assert (manifest.labels, manifest.class_names) == ((2,), ("eat", "run", "walk"))
    official(tmp_path, "validate", "walking,cbcdefghijk,1,11,validate")
    with pytest.raises(InputError, match=r"validate\.csv, line 2: the class 'walking'.*nearest is 'walk'"):
        read_split(tmp_path, "val")


def test_a_test_list_of_validation_videos_finds_them(tmp_path):
    official(tmp_path, "test", "run,abcdefghijk,1,11,val")
    touch(tmp_path, "val/abcdefghijk_000001_000011.mp4", "test/other.mp4")
    assert relative(read_split(tmp_path, "test"), tmp_path) == ["val/abcdefghijk_000001_000011.mp4"]


def test_missing_clips_have_the_place_where_they_belong(tmp_path):
    official(tmp_path, "train", "run,abcdefghijk,1,11,train", "run,bbcdefghijk,1.0,11.0,train")
    with pytest.raises(InputError, match=r"no videos were found.*abcdefghijk_000001_000011\.mp4.*LOADER\.VIDEO_FOLDER"):
        read_split(tmp_path, "train")
    with pytest.raises(InputError, match=r"VIDEO_FOLDER.*no folder"):
        read_split(tmp_path, "train", video_folder=str(tmp_path / "nowhere"))
    touch(tmp_path, "train/abcdefghijk_000001_000011.mp4")
    manifest = read_split(tmp_path, "train")
    assert [os.path.relpath(path, tmp_path) for path in check_files(manifest)] == [
        "train/bbcdefghijk_000001_000011.mp4"
    ]
    assert len(manifest) == 2


def test_two_official_lists_of_a_split(tmp_path):
    official(tmp_path, "train", "run,abcdefghijk,1,11,train")
    official(tmp_path, "kinetics-400_train", "run,abcdefghijk,1,11,train")
    with pytest.raises(InputError, match=r"(?s)2 official Kinetics lists.*kinetics-400_train\.csv: label,.*train\.csv"):
        read_split(tmp_path, "train")


# Something-Something v2


def test_ssv2_tests_on_validation_and_refuses_two_folders(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "validation.json").write_text(
        '[{"id": "5", "template": "Holding [something]"}, {"id": 6, "template": "Tilting"}]'
    )
    (tmp_path / "test.json").write_text('[{"id": "9"}]')
    (tmp_path / "labels.json").write_text('{"Tilting": "1", "Holding something": "0"}')
    with pytest.raises(InputError, match=r"no videos were found.*5\.webm nor frame folders.*LOADER\.VIDEO_FOLDER"):
        read_split(tmp_path, "val")
    touch(tmp_path, "videos/5.webm")
    manifest = read_split(tmp_path, "test")
    assert (relative(manifest, tmp_path), manifest.labels) == (["videos/5.webm", "videos/6.webm"], (0, 1))
    assert "validation split" in caplog.text
    assert check_files(manifest) == [manifest.paths[1]]
    with pytest.raises(InputError, match=r"no annotations of the split 'train'; expected train\.json"):
        read_split(tmp_path, "train")
    touch(tmp_path, "frames/5/1.jpg", "frames/6/1.jpg")
    with pytest.raises(InputError, match=r"2 frames in .*frames, 1 video in .*videos; name.*LOADER\.VIDEO_FOLDER"):
        read_split(tmp_path, "val")
    frames = read_split(tmp_path, "val", video_folder=str(tmp_path / "frames"))
    assert (relative(frames, tmp_path), frames.kind) == (["frames/5", "frames/6"], "frames")
    (tmp_path / "labels.json").write_text('{"Tilting": 1, "Holding nothing": 0}')
    with pytest.raises(InputError, match=r"validation\.json, id 5: the class 'Holding something'.*'Holding nothing'"):
        read_split(tmp_path, "val")


# Several formats in one folder


def test_two_formats_are_shown_with_their_first_lines(tmp_path):
    (tmp_path / "train.csv").write_text("a.mp4 0\nb.mp4 1\n")
    (tmp_path / "k400_train_list_videos.txt").write_text("c.mp4 2\n")
    (tmp_path / "k400_train_list_rawframes.txt").write_text("d 30 3\n")
    with pytest.raises(
        InputError, match=r"(?s)fits 3 formats.*LIST_FORMAT:.*pyslowfast: .*a\.mp4 0.*_videos: .*c\.mp4 2.*d 30 3"
    ):
        read_split(tmp_path, "train")
    assert read_split(tmp_path, "train", format="pyslowfast").labels == (0, 1)
    assert read_split(tmp_path, "train", format="mmaction2_videos").labels == (2,)
    assert read_split(tmp_path, "train", format="mmaction2_rawframes").kind == "frames"


def test_mmaction2_lists_of_other_splits(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "ucf101_val_split_1_videos.txt").write_text("c.mp4 2\n")
    assert read_split(tmp_path, "test", video_folder="/v").paths == ("/v/c.mp4",)
    assert "no list of the test split" in caplog.text
    with pytest.raises(InputError, match=r"no list of the split 'train'.*kinetics400_train_list_videos\.txt"):
        read_split(tmp_path, "train")
    (tmp_path / "ucf101_val_split_2_videos.txt").write_text("d.mp4 3\n")
    with pytest.raises(InputError, match=r"(?s)2 lists of the split 'val'.*c\.mp4 2.*d\.mp4 3"):
        read_split(tmp_path, "val")


def test_a_file_for_a_folder(tmp_path):
    (tmp_path / "train.csv").write_text("x.mp4 0\n")
    with pytest.raises(InputError, match=r"PATH_TO_DATA_DIR is the file"):
        read_split(tmp_path / "train.csv", "train")
    assert read_split(tmp_path, "train", video_folder="/v").paths == ("/v/x.mp4",)
    assert read_split(tmp_path, "train", video_folder="/v", prefix="/p").paths == ("/p/x.mp4",)
    with pytest.raises(InputError, match=r"none of the 1 videos"):
        require_files(read_split(tmp_path, "train"))
