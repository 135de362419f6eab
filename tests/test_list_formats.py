"""Every list format says the same: a random data set, written in each of them, is read with its paths and labels."""

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from revvideo.data.lists.class_names import read_class_file
from revvideo.data.manifest import LIST_FORMATS, read_split
from revvideo.errors import InputError

NAMES = ["pull ups", "abseiling", "Zumba", "massaging person's head", "eating, fast", "tying knot (not on a tie)"]


@dataclass
class DataSet:
    """Videos of random names and classes, to be written in some format below `root`."""

    root: Path
    names: list[str]  # without suffix, such as the official name of a Kinetics clip
    labels: list[int]
    class_names: tuple[str, ...] = tuple(sorted(NAMES))

    def touch(self, path: str) -> str:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
        return str(file)

    def write(self, path: str, *lines: str, end: str = "\n") -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes("".join(line + end for line in lines).encode())

    def classes(self) -> list[str]:
        return [self.class_names[label] for label in self.labels]


def random_data_set(root: Path, seed: int) -> DataSet:
    rng = random.Random(seed)
    labels = [*range(len(NAMES)), *(rng.randrange(len(NAMES)) for _ in range(6))]
    rng.shuffle(labels)
    letters = "abcXYZ019-_"
    names = [f"{''.join(rng.choices(letters, k=11))}_{10 * k:06d}_{10 * k + 10:06d}" for k in range(len(labels))]
    return DataSet(root, names, labels)


def pyslowfast(data, separator=" ", end="\n", mark=""):
    paths = [data.touch(f"videos/{name}.mp4") for name in data.names]
    rows = [f"videos/{name}.mp4{separator}{label}" for name, label in zip(data.names, data.labels)]
    data.write("train.csv", mark + rows[0], *rows[1:], end=end)
    return paths, (), "video"


def pyslowfast_three_columns(data):
    paths = [data.touch(f"{name}.avi") for name in data.names]
    data.write("train.csv", *(f"{name}.avi\t300\t{label}" for name, label in zip(data.names, data.labels)))
    return paths, (), "video"


def pyslowfast_quoted(data):
    paths = [data.touch(f"a, b/{name}.mp4") for name in data.names]
    data.write("train.csv", *(f'"a, b/{name}.mp4",{label}' for name, label in zip(data.names, data.labels)))
    data.write("classes.txt", *data.class_names)
    return paths, data.class_names, "video"


def pyslowfast_frames(data):
    paths = [str(Path(data.touch(f"frames/{name}/1.jpg")).parent) for name in data.names]
    data.write("train.csv", "# a comment", "", *(f"frames/{n} {label}" for n, label in zip(data.names, data.labels)))
    return paths, (), "frames"


def mmaction2_videos(data, folder="videos_train"):
    paths = [data.touch(f"{folder}/my class/{name}.mp4") for name in data.names]
    rows = [f"my class/{name}.mp4 {label}" for name, label in zip(data.names, data.labels)]
    data.write("kinetics400_train_list_videos.txt", *rows)
    return paths, (), "video"


def mmaction2_rawframes(data):
    paths = [str(Path(data.touch(f"rawframes_train/c/{name}/img_00001.jpg")).parent) for name in data.names]
    rows = [f"c/{name} {10 + k} {label}" for k, (name, label) in enumerate(zip(data.names, data.labels))]
    data.write("ucf101_train_split_1_rawframes.txt", *rows)
    return paths, (), "frames"


def kinetics(data, place="train/{name}.mp4", list_name="train.csv"):
    paths = [
        data.touch(place.format(name=name, label=label, folder=label.replace(" ", "_")))
        for name, label in zip(data.names, data.classes())
    ]
    rows = []
    for name, label in zip(data.names, data.classes()):
        video, start, end = name[:11], int(name[12:18]), int(name[19:])
        quoted = f'"{label}"' if "," in label else label
        rows.append(f"{quoted},{video},{start},{end},train")
    data.write(list_name, "label,youtube_id,time_start,time_end,split", *rows)
    return paths, data.class_names, "video"


def ssv2(data, prefix="", place="20bn-something-something-v2/{}.webm"):
    ids = [str(100 + 7 * k) for k in range(len(data.names))]
    paths = [data.touch(place.format(video)) for video in ids]
    entries = [
        {"id": video, "template": name.replace("person", "[person]"), "label": "x", "placeholders": []}
        for video, name in zip(ids, data.classes())
    ]
    numbers = {name: str(k) for k, name in enumerate(data.class_names)}
    data.write(f"{prefix}train.json", json.dumps(entries))
    data.write(f"{prefix}labels.json", json.dumps(numbers))
    frames = place.endswith(".jpg")
    return (
        [str(Path(path).parent) if frames else path for path in paths],
        data.class_names,
        "frames" if frames else "video",
    )


def ssv2_of_pyslowfast(data):
    """Its own lists of frames beside the json files: a line a frame."""
    _, names, kind = ssv2(data, "something-something-v2-", "elsewhere/{}/x_000001.jpg")
    paths = [str(data.root / "elsewhere" / str(100 + 7 * k)) for k in range(len(data.names))]
    rows = [
        f'{Path(path).name} {k} {frame} elsewhere/{Path(path).name}/x_{frame:06d}.jpg ""'
        for k, path in enumerate(paths)
        for frame in range(3)
    ]
    random.Random(0).shuffle(rows)
    data.write("train.csv", "original_vido_id video_id frame_id path labels", *rows)
    return paths, names, kind


def tree(data, place):
    found = {}
    for name, label in zip(data.names, data.classes()):
        path = data.touch(place.format(label=label, name=name))
        found[str(Path(path).parent) if "/00001" in place else path] = label
    return found, data.class_names, {"mp4": "video", "jpg": "frames", "PEG": "image"}[place[-3:]]


FORMATS = {
    "blanks": pyslowfast,
    "commas": lambda data: pyslowfast(data, ","),
    "tabs": lambda data: pyslowfast(data, "\t"),
    "comma and blank": lambda data: pyslowfast(data, ", "),
    "semicolons": lambda data: pyslowfast(data, ";"),
    "windows": lambda data: pyslowfast(data, ",", end="\r\n", mark="\ufeff"),
    "three columns": pyslowfast_three_columns,
    "quoted": pyslowfast_quoted,
    "frames": pyslowfast_frames,
    "mmaction2 videos": mmaction2_videos,
    "mmaction2 beside": lambda data: mmaction2_videos(data, "."),
    "mmaction2 rawframes": mmaction2_rawframes,
    "CVDF": kinetics,
    "CVDF annotations": lambda data: kinetics(data, list_name="annotations/train.csv"),
    "replacement": lambda data: kinetics(data, "replacement/replacement_for_corrupted_k400/{name}.mp4"),
    "crawler": lambda data: kinetics(data, "train/{label}/{name}.mkv", "kinetics-600_train.csv"),
    "underscores": lambda data: kinetics(data, "videos/train_256/{folder}/{name}.webm", "k700-2020_train.csv"),
    "classes beside": lambda data: kinetics(data, "{folder}/{name}.mp4", "kinetics700_2020_train.csv"),
    "SSv2": ssv2,
    "SSv2 long names": lambda data: ssv2(data, "something-something-v2-", "videos/{}.mp4"),
    "SSv2 frames": lambda data: ssv2(data, "labels/", "frames/{}/000001.jpg"),
    "SSv2 of PySlowFast": ssv2_of_pyslowfast,
    "tree": lambda data: tree(data, "train/{label}/{name}.mp4"),
    "tree of frames": lambda data: tree(data, "training/{label}/{name}/00001.jpg"),
    "imagenet": lambda data: tree(data, "train/{label}/{name}.JPEG"),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("case", FORMATS)
def test_what_was_written_is_read(case, seed, tmp_path):
    data = random_data_set(tmp_path, seed)
    paths, names, kind = FORMATS[case](data)
    manifest = read_split(str(tmp_path), "train", num_classes=len(NAMES))
    expected = list(zip(map(str, map(Path, paths)), data.labels))
    if isinstance(paths, dict):
        expected = sorted((path, data.class_names.index(label)) for path, label in paths.items())
    found = list(zip(map(str, map(Path, manifest.paths)), manifest.labels))
    assert (sorted(found) if isinstance(paths, dict) else found) == expected
    assert (manifest.class_names, manifest.kind, manifest.labelled) == (tuple(names), kind, True)


LINES = {
    "a blank in the path": (["my video.mp4 0", "b.mp4 1"], r"line 1: 'my video\.mp4 0' has 3 columns"),
    "a label that is a word": (["x.mp4 0", "y.mp4 run"], r"line 2.*'run' is no integer"),
    "a header": (["path label", "y.mp4 1"], r"line 1.*no header line"),
    "no labels in training": (["x.mp4", "y.mp4"], r"one column, so no labels"),
}


@pytest.mark.parametrize("case", LINES)
def test_a_csv_that_fits_no_separator_is_one_error(case, tmp_path):
    lines, message = LINES[case]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match=message):
        read_split(tmp_path, "train")


def test_several_separators_are_shown(tmp_path):
    (tmp_path / "train.csv").write_text("a b \t0\nc d \t1\n")
    with pytest.raises(InputError, match=r"(?s)' ' and '.t'.*PATH_LABEL_SEPARATOR.*\n    a b"):
        read_split(tmp_path, "train", separator="|")
    assert read_split(tmp_path, "train", separator="\t").paths == ("a b", "c d")


def test_the_named_format_takes_the_separator_at_its_word(tmp_path):
    (tmp_path / "train.csv").write_text("x.mp4,0\n")
    assert read_split(tmp_path, "train").labels == (0,)
    with pytest.raises(InputError, match=r"separated by ','.*PATH_LABEL_SEPARATOR is ' '"):
        read_split(tmp_path, "train", format="pyslowfast")


@pytest.mark.parametrize("lines", [["x.mp4", "y.mp4"], ["my x.mp4", "y, z.mp4"]])
def test_a_list_without_labels_is_for_evaluation(tmp_path, lines):
    (tmp_path / "test.csv").write_text("\n".join(lines))
    manifest = read_split(tmp_path, "test", prefix="/v")
    assert manifest.paths == tuple(f"/v/{line}" for line in lines)
    assert (manifest.labels, manifest.labelled) == ((0, 0), False)


def test_kinetics_without_labels(tmp_path):
    data = random_data_set(tmp_path, 0)
    kinetics(data, "test/{name}.mp4")
    header, *rows = (tmp_path / "train.csv").read_text().splitlines()
    (tmp_path / "train.csv").unlink()
    bare = [header.split(",", 1)[1], *(row.rsplit(",", 4)[1:] for row in rows)]
    (tmp_path / "test.csv").write_text("\n".join([bare[0], *(",".join(row) for row in bare[1:])]))
    manifest = read_split(tmp_path, "test")
    assert [Path(path).stem for path in manifest.paths] == data.names
    assert not manifest.labelled


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfex\x00.\x00", r"not a text file \(UTF-8 expected; byte 0 is 0xff"),
        (b"x\x00.\x00m\x00p\x00 \x000\x00", r"zero bytes"),
        (b"", r"is empty"),
        (b"# only\n\n# comments\n", r"is empty"),
    ],
)
def test_files_that_are_no_lists(tmp_path, content, message):
    (tmp_path / "val.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_split(tmp_path, "val")


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("kinetics400_train_list_videos.txt", "x.mp4 one", r"line 1: 'x\.mp4 one'; expected 'path label'"),
        ("kinetics400_train_list_rawframes.txt", "x 3", r"'folder total_frames label'"),
        ("kinetics400_train_list_rawframes.txt", "x 0 3", r"0 frames; expected 1 or more"),
        ("kinetics400_train_list_videos.txt", "x.mp4 9", r"label 9; expected 0\.\.5"),
        ("train.json", "[{}]", r"entry 0: '{}'; expected an object with 'id' and 'template'"),
        ("train.json", "[{", r"not json"),
        ("train.json", '[{"id": 1, "template": "a"}]', r"no labels\.json"),
        ("train.json", "[" * 200_000, r"no json of a data set"),
        ("train.json", f"[{'9' * 5000}]", r"no json of a data set"),
        ("kinetics400_train_list_videos.txt", f"x.mp4 {'9' * 5000}", r"line 1: 'x\.mp4 9{94}\.\.\.'; expected"),
        ("train.csv", f"x.mp4 {'9' * 5000}", r"'9{100}\.\.\.' is no integer label"),
        ("train.csv", f"{'x' * 200_000}.mp4 a", r"line 1: 'x{100}\.\.\.'"),
        ("train.csv", f'"{"x" * 200_000} 0', r"line 1: '\"x{99}\.\.\.'"),
    ],
)
def test_wrong_lines_of_the_other_formats(tmp_path, name, row, message):
    (tmp_path / name).write_text(row + "\n")
    with pytest.raises(InputError, match=message):
        read_split(tmp_path, "train", num_classes=6)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("run,abcdefghijk,x,20,train", r"line 2.*'run,abcdefghijk,x,20,train'.*times in seconds"),
        ("run,abcdefghijk", r"line 2"),
        ("run,a,1,2,train\n,b,3,4,train", r"line 3: b_000003_000004 has no label"),
        ("", "has no clips"),
        ("run,a,1,inf,train", "line 2.*times in seconds"),
        ('run,a,1,2,train\n"run,b,3,4,train\n' + "run,c,5,6,train\n" * 10_000, "line 3: a double quote opens"),
    ],
)
def test_wrong_lines_of_the_official_lists(tmp_path, row, message):
    (tmp_path / "train.csv").write_text(f"label,youtube_id,time_start,time_end,split\n{row}\n")
    with pytest.raises(InputError, match=message):
        read_split(tmp_path, "train")


def test_a_fifo_is_no_list(tmp_path):
    os.mkfifo(tmp_path / "train.csv")
    with pytest.raises(InputError, match=r"train\.csv: not a regular file"):
        read_split(tmp_path, "train")


def test_a_folder_that_cannot_have_that_name():
    with pytest.raises(InputError, match="null byte"):
        read_split("data\0", "train")


def test_labels_that_contradict_each_other_are_told(tmp_path, caplog):
    (tmp_path / "train.csv").write_text("a.mp4 0\nb.mp4 1\nb.mp4 1\n")
    assert read_split(tmp_path, "train").labels == (0, 1, 1)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    (tmp_path / "train.csv").write_text("a.mp4 0\nb.mp4 1\na.mp4 2\n")
    read_split(tmp_path, "train")
    assert "gives 1 paths more than one label, such as a.mp4, which has 0 and 2" in caplog.text


@pytest.mark.parametrize("separator", [";", "\t"])
def test_official_lists_are_separated_by_commas(tmp_path, separator):
    header = separator.join(("label", "youtube_id", "time_start", "time_end", "split"))
    (tmp_path / "train.csv").write_text(f"{header}\n{separator.join(('run', 'a', '1', '2', 'train'))}\n")
    with pytest.raises(InputError, match=r"line 1: the header .* has no column 'youtube_id'.*commas"):
        read_split(tmp_path, "train")


def test_a_list_of_frames_that_is_no_text(tmp_path):
    ssv2_of_pyslowfast(random_data_set(tmp_path, 0))
    with (tmp_path / "train.csv").open("ab") as file:
        file.write(b"100 0 3 elsewhere/\xd1/x.jpg\n")
    with pytest.raises(InputError, match=r"train\.csv is not a text file .*0xd1"):
        read_split(tmp_path, "train")


# Class files


CLASS_FILES = {
    "lines": ("c.txt", "b c\na\n\nd\n"),
    "windows": ("c.txt", "\ufeffb c\r\na\r\nd\r\n"),
    "csv": ("c.csv", "id,name\n0,b c\n2,d\n1,a\n"),
    "csv, other order": ("c.csv", 'name,id\n"b c",0\na,1\nd,2\n'),
    "csv without header": ("c.csv", "0,b c\n1,a\n2,d\n"),
    "json": ("c.json", '{"\\"b c\\"": 0, "d": 2, "a": 1}'),
    "json of strings": ("c.json", '{"b c": "0", "d": "2", "a": "1"}'),
    "json, turned": ("c.json", '{"0": "b c", "2": "d", "1": "a"}'),
    "json list": ("c.json", '["b c", "a", "d"]'),
}


@pytest.mark.parametrize("case", CLASS_FILES)
def test_class_files(case, tmp_path):
    name, content = CLASS_FILES[case]
    (tmp_path / name).write_bytes(content.encode())
    assert read_class_file(str(tmp_path / name)) == ("b c", "a", "d")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("id,name\n0,a\n2,b\n", "no 1"),
        ("id,name\n0,a\n0,b\n", "0 twice"),
        ("id,name\nx,a\n", r"row 1: \['x', 'a'\]"),
        ('{"a": "first"}', "'a' the number 'first'"),
        ("[1, 2]", "not of names"),
        ("{}", "holds {}"),
        ("[]", "empty"),
        ('{"a": -1, "b": 0}', "'a' the number -1"),
        ('0,a\n1,"b\n' + "c" * 200_000, "line 2: a double quote opens"),
        ("a\0b\n", r"zero bytes.*LOADER\.CLASS_FILE"),
    ],
)
def test_wrong_class_files(content, message, tmp_path):
    (tmp_path / "c").write_text(content)
    with pytest.raises(InputError, match=message):
        read_class_file(str(tmp_path / "c"))
    with pytest.raises(InputError, match=r"No such file.*LOADER\.CLASS_FILE"):
        read_class_file(str(tmp_path / "missing"))


def test_a_class_file_gives_the_numbers_and_its_lack_is_named(tmp_path):
    data = random_data_set(tmp_path, 0)
    kinetics(data)
    turned = tuple(reversed(data.class_names))
    data.write("own.txt", *(name.replace(" ", "_") for name in turned))
    own = str(tmp_path / "own.txt")
    manifest = read_split(tmp_path, "train", class_file=own)
    assert manifest.labels == tuple(len(NAMES) - 1 - label for label in data.labels)
    data.write("own.txt", *(name for name in data.class_names if name != "pull ups"), "pulling up")
    with pytest.raises(
        InputError, match=r"train\.csv, line \d+: the class 'pull ups'.*own\.txt.*nearest is 'pulling up'"
    ):
        read_split(tmp_path, "train", class_file=own)
    data.write("own.txt", "a b", "c", "a_b")
    with pytest.raises(InputError, match=r"'a_b' twice \(numbers 0 and 2"):
        read_split(tmp_path, "train", class_file=own)


def test_class_counts_are_compared_with_the_model(tmp_path, caplog):
    data = random_data_set(tmp_path, 0)
    kinetics(data)
    with pytest.raises(InputError, match=r"has 6 classes.*MODEL\.NUM_CLASSES is 5; set MODEL\.NUM_CLASSES 6"):
        read_split(tmp_path, "train", num_classes=5)
    assert "LOADER.CLASS_FILE" not in caplog.text
    read_split(tmp_path, "train", num_classes=400)
    assert "6 classes, MODEL.NUM_CLASSES is 400" in caplog.text


def test_labels_beyond_the_names_of_a_plain_list(tmp_path, caplog):
    (tmp_path / "train.csv").write_text("x.mp4 2\n")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    assert read_split(tmp_path, "train").class_names == ()  # a file that merely lies there is no reason to stop
    assert "label 2" in caplog.text
    with pytest.raises(InputError, match=r"label 2, but .*classes\.txt names 2 classes"):
        read_split(tmp_path, "train", class_file=str(tmp_path / "classes.txt"))


def test_formats_have_names(tmp_path):
    assert set(LIST_FORMATS) >= {
        "auto",
        "pyslowfast",
        "mmaction2_videos",
        "kinetics",
        "ssv2",
        "class_folders",
        "imagenet",
    }
    with pytest.raises(InputError, match=r"LIST_FORMAT is 'kinetic'.*nearest is 'kinetics'"):
        read_split(tmp_path, "train", format="kinetic")
    with pytest.raises(InputError, match=r"split is 'dev'"):
        read_split(tmp_path, "dev")
