"""A video that was opened before is not scanned again, unless it has changed; a bad disk costs time, never a video."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from videos import frame_number, write_video

from revvideo.data.readers import packet_index, pyav
from revvideo.data.readers.index_cache import IndexCache
from revvideo.data.readers.packet_index import PacketIndex
from revvideo.data.video_reader import open_video


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A video of 30 frames. Copied, never changed."""
    return write_video(tmp_path_factory.mktemp("whole") / "v.mp4", 30, gop=10, b_frames=2, rotation=90)


@pytest.fixture
def video_path(whole, tmp_path):
    path = tmp_path / "v.mp4"
    path.write_bytes(Path(whole).read_bytes())
    return str(path)


@pytest.fixture
def scans(monkeypatch):
    """The paths that were scanned, one entry a scan."""
    seen = []

    def scan(container, stream):
        seen.append(container.name)
        return packet_index.scan_packets(container, stream)

    monkeypatch.setattr(pyav, "scan_packets", scan)
    return seen


def read(path, cache):
    with open_video(path, index_cache=cache) as video:
        facts = (video.num_frames, video.fps, video.height, video.width, video.pts.tolist())
        return facts, video.frames([0, 29, 11])


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_second_opening_does_not_scan(video_path, scans, tmp_path, on_disk):
    folder = str(tmp_path / "cache") if on_disk else None
    cache = IndexCache(folder)
    first = read(video_path, cache)
    second = read(video_path, IndexCache(folder) if on_disk else cache)  # on disk: as another process
    assert len(scans) == 1
    assert first[0] == second[0]
    np.testing.assert_array_equal(first[1], second[1])
    read(video_path, None)
    assert len(scans) == 2


def test_a_changed_file_is_scanned_again(video_path, scans, tmp_path):
    folder = str(tmp_path / "cache")
    cache = IndexCache(folder)
    read(video_path, cache)
    write_video(video_path, 30, gop=10, seed=1)
    os.utime(video_path, ns=(1, 1))
    for used in (cache, IndexCache(folder)):
        with open_video(video_path, index_cache=used) as video:
            assert frame_number(video.frames([17])[0]) == 17
    assert len(scans) == 2
    assert len(os.listdir(folder)) == 1  # one file a video


def test_a_link_is_the_file_that_it_names(video_path, scans, tmp_path):
    link = tmp_path / "link.mp4"
    link.symlink_to(video_path)
    cache = IndexCache()
    read(video_path, cache)
    read(str(link), cache)
    assert len(scans) == 1


@pytest.mark.parametrize("content", [b"", b"revvideo packets 2\n", b"something else", None, "flip"])
def test_a_damaged_entry_is_ignored(video_path, scans, tmp_path, content):
    folder = tmp_path / "cache"
    read(video_path, IndexCache(str(folder)))
    (entry,) = folder.iterdir()
    if content is None:
        entry.write_bytes(entry.read_bytes()[:-5])
    elif content == "flip":
        whole = bytearray(entry.read_bytes())
        whole[-20] ^= 1
        entry.write_bytes(whole)
    else:
        entry.write_bytes(content)
    assert IndexCache(str(folder)).get(video_path) is None
    facts, _ = read(video_path, IndexCache(str(folder)))
    assert facts[0] == 30
    assert len(scans) == 2
    assert IndexCache(str(folder)).get(video_path) is not None  # written anew


def test_a_folder_that_cannot_be_written(video_path, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    cache = IndexCache(str(tmp_path / "file" / "cache"))
    facts, _ = read(video_path, cache)
    assert facts[0] == 30
    assert cache.get(video_path).geometry == (64, 96, 1)  # in memory all the same


def test_a_missing_file_has_no_entry(tmp_path):
    assert IndexCache(str(tmp_path)).get(str(tmp_path / "missing.mp4")) is None


def test_memory_forgets_what_was_used_longest_ago(tmp_path):
    index = PacketIndex(np.zeros(100), 30.0)
    cache = IndexCache(max_bytes=2 * index.num_bytes)
    paths = [str(tmp_path / name) for name in "abc"]
    for path in paths:
        Path(path).touch()
    cache.put(paths[0], index)
    cache.put(paths[1], index)
    assert cache.get(paths[0]) is index  # used again: now the second one is the oldest
    cache.put(paths[2], index)
    assert [cache.get(path) is index for path in paths] == [True, False, True]


def test_a_worker_starts_with_an_empty_memory(video_path, tmp_path):
    folder = str(tmp_path / "cache")
    memory, disk = IndexCache(max_bytes=10**6), IndexCache(folder)
    for cache in (memory, disk):
        read(video_path, cache)
    assert len(pickle.dumps(memory)) < 500
    copy = pickle.loads(pickle.dumps(memory))
    assert (copy.max_bytes, copy.get(video_path)) == (10**6, None)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(disk)).get(video_path).ticks, disk.get(video_path).ticks)


def test_what_the_scan_complains_of_is_remembered(video_path):
    content = Path(video_path).read_bytes()
    size = content.index(b"stsz") + 16 + 4 * 20
    Path(video_path).write_bytes(content[:size] + b"\x7f\xff\xff\xf0" + content[size + 4 :])
    cache = IndexCache()
    for _ in range(2):
        with open_video(video_path, index_cache=cache) as video:
            assert len(video.warnings) == 1
            assert "30 frames" in video.warnings[0]
            video.warnings.append("mine")  # the reader's own list, not the cache's


def test_the_index_of_a_file_that_another_one_has_replaced_is_not_kept(video_path, tmp_path):
    cache, other = IndexCache(str(tmp_path / "cache")), write_video(tmp_path / "other.mp4", 12)
    with open_video(video_path, index_cache=cache) as video:
        os.replace(other, video_path)
        assert (video.num_frames, video.height) == (30, 96)  # learns the size, which is remembered, too
        assert cache.get(video_path) is None
    with open_video(video_path, index_cache=cache) as video:
        assert video.num_frames == 12


def test_what_is_known_of_a_new_file_is_not_taken_for_the_one_that_is_open(video_path, tmp_path, monkeypatch):
    cache, other = IndexCache(), write_video(tmp_path / "other.mp4", 12)
    real_open = pyav.PyAVReader._open

    def open_and_replace(reader):
        opened = real_open(reader)
        os.replace(other, video_path)
        cache.put(video_path, PacketIndex(np.arange(12) / 30, 30.0))  # by another reader
        return opened

    monkeypatch.setattr(pyav.PyAVReader, "_open", open_and_replace)
    with open_video(video_path, index_cache=cache) as video:
        assert video.num_frames == 30
    assert len(cache.get(video_path).seconds) == 12


def test_the_times_belong_to_the_caller(video_path, tmp_path):
    for cache in (IndexCache(), IndexCache(str(tmp_path / "cache"))):
        for _ in range(2):
            with open_video(video_path, index_cache=IndexCache(cache.folder) if cache.folder else cache) as video:
                assert video.pts[0] == 0
                video.pts += 5
