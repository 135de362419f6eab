"""A folder of pictures is a video: in natural order, with damage told or refused like any other video's."""

import itertools
import os
import pickle

import numpy as np
import pytest
from PIL import Image
from videos import frame_number, numbered_frames

from revvideo.data.readers.frame_folder import natural_order
from revvideo.data.readers.library_reader import resize_frames
from revvideo.data.video_reader import VideoError, open_video

FRAMES = numbered_frames(12)


def write_folder(folder, names=None, frames=FRAMES):
    folder.mkdir(exist_ok=True)
    for frame, name in zip(frames, names or (f"img_{t + 1}.png" for t in itertools.count())):
        Image.fromarray(frame).save(folder / name, **({} if name.endswith("png") else {"quality": 95}))
    return str(folder)


def test_pictures_are_frames_in_natural_order(tmp_path):
    path = write_folder(tmp_path / "video")  # img_1.png .. img_12.png: as text, 10 comes before 2
    with open_video(path, "frames", strict=True) as video:
        assert (video.backend, video.num_frames, video.fps, video.height, video.width) == ("frames", 12, 30.0, 64, 96)
        np.testing.assert_allclose(video.pts, np.arange(12) / 30)
        assert video.duration_seconds == pytest.approx(0.4)
        for indices in ([0], [11], [7, 2, 11, 2], range(12)):
            np.testing.assert_array_equal(video.frames(indices), FRAMES[list(indices)])
        np.testing.assert_array_equal(video.clip(8, 4, 2), FRAMES[[8, 10, 11, 11]])
        assert (video.num_bad_frames, video.warnings) == (0, [])


@pytest.mark.parametrize("pattern", ["img_{:05d}.jpg", "{}.JPG", "frame000{}.jpeg"])
def test_jpeg(tmp_path, pattern):
    path = write_folder(tmp_path / "video", [pattern.format(t + 1) for t in range(12)])
    with open_video(path, "frames", strict=True) as video:
        frames = video.frames(range(12))
        assert [frame_number(frame) for frame in frames] == list(range(12))
        assert np.abs(frames.astype(int) - FRAMES).mean() < 3


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("size", [(16, 24), (40, 50), (100, 90)])
def test_size_scales(tmp_path, size, suffix):
    path = write_folder(tmp_path / "video", [f"{t}.{suffix}" for t in range(3)])
    with open_video(path, "frames") as video:
        scaled = video.frames([2, 0, 2], size=size)
        assert scaled.shape == (3, *size, 3)
        difference = np.abs(scaled.astype(int) - resize_frames(video.frames([2, 0, 2]), size))
        assert difference.mean() < 4  # a JPEG is decoded at half or a quarter of its size where that is enough
        assert (video.height, video.width) == (64, 96)
        np.testing.assert_array_equal(video.clip(0, 2, 2, size=size), scaled[[1, 0]])


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_orientation_is_applied(tmp_path, orientation):
    folder = tmp_path / "video"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(FRAMES[5]).save(folder / "1.jpg", quality=95, exif=exif)
    truth = np.rot90(FRAMES[5], {3: 2, 6: 3, 8: 1}[orientation])
    with open_video(str(folder), "frames", strict=True) as video:
        assert (video.height, video.width) == truth.shape[:2]
        assert np.abs(video.frames([0])[0].astype(int) - truth).mean() < 3
        size = (truth.shape[0] // 4, truth.shape[1] // 4)
        small = video.frames([0], size=size)
        assert np.abs(small.astype(int) - resize_frames(truth[None], size)).mean() < 6


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_other_kinds_of_pictures_become_rgb(tmp_path, mode):
    (tmp_path / "video").mkdir()
    picture = Image.fromarray(FRAMES[3]).convert(mode)
    picture.save(tmp_path / "video" / "1.png")
    with open_video(str(tmp_path / "video"), "frames") as video:
        np.testing.assert_array_equal(video.frames([0])[0], np.asarray(picture.convert("RGB")))


def test_16_bits_of_grey_become_8(tmp_path):
    (tmp_path / "video").mkdir()
    levels = np.linspace(0, 65535, 64 * 96).astype(np.uint16).reshape(64, 96)
    Image.fromarray(levels).save(tmp_path / "video" / "1.png")
    with open_video(str(tmp_path / "video"), "frames") as video:
        np.testing.assert_array_equal(video.frames([0])[0], np.repeat((levels // 256)[..., None], 3, axis=2))


@pytest.mark.filterwarnings("error")
def test_a_transparent_palette_is_no_news(tmp_path):
    (tmp_path / "video").mkdir()
    picture = Image.fromarray(FRAMES[3]).quantize(8)
    picture.save(tmp_path / "video" / "1.png", transparency=bytes(8))
    with open_video(str(tmp_path / "video"), "frames") as video:
        np.testing.assert_array_equal(video.frames([0])[0], np.asarray(picture.convert("RGB")))


def test_flow_and_other_files_are_left_out(tmp_path):
    path = write_folder(tmp_path / "video", [f"img_{t + 1:05d}.png" for t in range(12)])
    write_folder(tmp_path / "video", [f"flow_{axis}_{t + 1:05d}.png" for t in range(6) for axis in "xy"])
    (tmp_path / "video" / "notes.txt").write_text("not a picture")
    (tmp_path / "video" / ".img_00099.png").write_bytes(b"a hidden file")
    (tmp_path / "video" / "folder.png").mkdir()
    with open_video(path, "frames", strict=True) as video:
        np.testing.assert_array_equal(video.frames(range(12)), FRAMES)


def break_picture(folder, name, how):
    path = folder / name
    if how == "fifo":
        path.unlink()
        os.mkfifo(path)
    else:
        whole = path.read_bytes()
        path.write_bytes({"empty": b"", "text": b"not found", "cut": whole[: len(whole) // 2]}[how])


@pytest.mark.parametrize("how", ["empty", "text", "cut", "fifo"])
def test_a_damaged_picture_is_replaced_or_refused(tmp_path, how):
    path = write_folder(tmp_path / "video")
    break_picture(tmp_path / "video", "img_6.png", how)
    with open_video(path, "frames") as video:
        np.testing.assert_array_equal(video.frames([4, 5, 6, 5]), FRAMES[[4, 4, 6, 4]])
        assert video.num_bad_frames == 1
        assert len(video.warnings) == 1
        assert "img_6.png" in video.warnings[0]
    with open_video(path, "frames", strict=True) as video:
        np.testing.assert_array_equal(video.frames([4, 6]), FRAMES[[4, 6]])
        with pytest.raises(VideoError, match=r"img_6\.png"):
            video.frames([5])


def test_a_damaged_first_picture_takes_the_next_good_one(tmp_path):
    path = write_folder(tmp_path / "video")
    break_picture(tmp_path / "video", "img_1.png", "text")
    with open_video(path, "frames") as video:
        assert (video.height, video.width) == (64, 96)
        np.testing.assert_array_equal(video.frames([0, 1, 2]), FRAMES[[1, 1, 2]])
        assert video.num_bad_frames == 1


def test_no_good_picture(tmp_path):
    path = write_folder(tmp_path / "video", frames=FRAMES[:3])
    for name in ("img_1.png", "img_2.png", "img_3.png"):
        break_picture(tmp_path / "video", name, "cut")
    with open_video(path, "frames") as video, pytest.raises(VideoError, match="no picture can be read"):
        video.frames([1])


def test_a_picture_of_another_size_is_scaled_or_refused(tmp_path):
    path = write_folder(tmp_path / "video")
    Image.fromarray(np.repeat(np.repeat(FRAMES[3], 2, 0), 2, 1)).save(tmp_path / "video" / "img_4.png")
    with open_video(path, "frames") as video:
        frames = video.frames([2, 3])
        assert [frame_number(frame) for frame in frames] == [2, 3]
        assert video.warnings == ["img_4.png is 192x128, the first picture 96x64"]
    with open_video(path, "frames", strict=True) as video, pytest.raises(VideoError, match="192x128"):
        video.frames([2, 3])


def test_a_gap_in_the_numbers_is_told_or_refused(tmp_path):
    path = write_folder(tmp_path / "video", [f"{t}.png" for t in (1, 2, 3, 4, 7, 8)])
    with open_video(path, "frames") as video:
        assert video.num_frames == 6
        assert video.warnings == ["pictures are missing between 4.png and 7.png"]
    with pytest.raises(VideoError, match=r"between 4\.png and 7\.png"):
        open_video(path, "frames", strict=True)


def test_every_fifth_frame_is_no_gap(tmp_path):
    path = write_folder(tmp_path / "video", [f"{t}.png" for t in range(0, 60, 5)])
    with open_video(path, "frames", strict=True) as video:
        assert video.num_frames == 12


def test_a_frame_that_is_there_twice(tmp_path):
    path = write_folder(tmp_path / "video", ["1.png", "2.png", "2.jpg"])
    with pytest.raises(VideoError, match=r"twice: 2\.jpg and 2\.png"):
        open_video(path, "frames")


def test_a_picture_that_is_too_large_is_refused_before_decoding(tmp_path):
    path = write_folder(tmp_path / "video", frames=FRAMES[:2])
    Image.new("1", (8192, 8192)).save(tmp_path / "video" / "img_2.png")
    with open_video(path, "frames", strict=True) as video, pytest.raises(VideoError, match="8192x8192"):
        video.frames([1])


def test_what_is_no_folder_of_pictures(tmp_path):
    write_folder(tmp_path / "good", frames=FRAMES[:1])
    (tmp_path / "nothing").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name, reason in {
        "good/img_1.png": "not a folder of pictures",
        "nothing": "no jpg or png picture",
        "fifo": "not a folder of pictures",
        "missing": "No such file",
    }.items():
        with pytest.raises(VideoError, match=reason) as caught:
            open_video(str(tmp_path / name), "frames")
        error = pickle.loads(pickle.dumps(caught.value))
        assert (error.path, error.backend) == (str(tmp_path / name), "frames")


def test_a_folder_is_refused_by_the_others_with_the_name_of_the_right_backend(tmp_path):
    path = write_folder(tmp_path / "video", frames=FRAMES[:1])
    with pytest.raises(VideoError, match='needs the backend "frames"'):
        open_video(path)


def test_mistakes_of_the_caller(tmp_path):
    with open_video(write_folder(tmp_path / "video"), "frames") as video:
        for indices in ([], [-1], [12]):
            with pytest.raises(IndexError):
                video.frames(indices)
        with pytest.raises(ValueError, match="asked of"):
            video.frames([0], size=(0, 5))
    video.close()
    with pytest.raises(ValueError, match="closed"):
        video.frames([0])


def test_natural_order():
    names = ["b1.jpg", "a10.jpg", "a9.jpg", "a09.jpg", "2.jpg", "10.jpg", "a.jpg", "x²3.jpg"]
    right = ["2.jpg", "10.jpg", "a09.jpg", "a9.jpg", "a10.jpg", "a.jpg", "b1.jpg", "x²3.jpg"]
    assert sorted(names, key=natural_order) == right
