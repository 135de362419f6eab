"""Makes tests/data/clips: one small clip for each oddity and each fault that the readers must stand.

    python tests/make_clips.py [FOLDER] [NAME ...]

All pictures are generated (`videos.numbered_frames`: every frame shows its number). The committed files are the truth
for the tests, as encoders differ from one build of FFmpeg to the next; this script says how each was made. Beside the
clips it writes truth.json: count, times and pictures as a plain full decode gives them, and what is wrong with each bad
clip and how a reader has to take it.
"""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from videos import frame_number, numbered_frames

CLIPS = Path(__file__).parent / "data" / "clips"
SAMPLES = 8  # frames of each odd clip whose picture is written down


@dataclass(frozen=True)
class Odd:
    """An odd but sound clip: how `encode` makes it and what `change` does to the file afterwards."""

    num_frames: int = 40
    size: tuple[int, int] = (64, 96)
    rate: Fraction | int = 30
    codec: str = "libx264"
    pixels: str = "yuv420p"
    gop: int = 250
    b_frames: int = 3
    encoder: str = ""  # more of x264-params (x265-params, svtav1-params)
    muxer: dict[str, str] = field(default_factory=dict)
    times: tuple[int, ...] | None = None  # in units of 1 / rate; None: 0, 1, 2, ...
    rotation: int | None = None
    aspect: Fraction | None = None
    audio: str = ""  # "first" or "last" stream
    audio_seconds: float = 1.3
    small_stream_first: bool = False
    cover: bool = False
    change: Callable[[bytes], bytes] | None = None
    turns: int = 0  # quarter turns counter-clockwise that a player makes


def encoder_options(odd: Odd) -> dict[str, str]:
    if odd.codec == "libx264":
        # no-mbtree: the trees of a lookahead thread differ from run to run
        params = f"keyint={odd.gop}:bframes={odd.b_frames}:scenecut=0:threads=1:no-mbtree=1"
        return {"preset": "medium", "crf": "30", "x264-params": params + (odd.encoder and f":{odd.encoder}")}
    if odd.codec == "libx265":
        params = f"keyint={odd.gop}:bframes={odd.b_frames}:scenecut=0:cutree=0:pools=none:frame-threads=1"
        return {"preset": "fast", "crf": "30", "x265-params": params}
    if odd.codec == "libsvtav1":
        return {"preset": "8", "crf": "45", "g": str(odd.gop), "svtav1-params": "lp=1"}
    if odd.codec == "libvpx-vp9":
        return {"crf": "40", "b": "0", "g": str(odd.gop), "cpu-used": "4"}
    return {"g": str(odd.gop), "bf": str(odd.b_frames), "qscale": "9", "global_quality": "1062", "flags": "+qscale"}


def add_video(container: av.container.OutputContainer, odd: Odd, size: tuple[int, int]) -> av.VideoStream:
    stream = container.add_stream(odd.codec, rate=odd.rate, options=encoder_options(odd))
    stream.height, stream.width = size
    stream.pix_fmt = odd.pixels
    stream.codec_context.thread_count = 1
    stream.codec_context.time_base = 1 / Fraction(odd.rate)
    if odd.aspect:
        stream.codec_context.sample_aspect_ratio = odd.aspect
    if odd.rotation is not None:
        stream.set_display_rotation(odd.rotation)
    return stream


def pictures(odd: Odd, size: tuple[int, int]) -> Iterable[av.VideoFrame]:
    for t, array in enumerate(numbered_frames(odd.num_frames, *size)):
        frame = av.VideoFrame.from_ndarray(array, format="rgb24")
        frame.pts, frame.time_base = (odd.times[t] if odd.times else t), 1 / Fraction(odd.rate)
        yield frame


def tone(seconds: float, rate: int = 8000) -> Iterable[av.AudioFrame]:
    for start in range(0, int(seconds * rate), 1024):
        wave = np.sin(np.arange(start, start + 1024) * 2 * np.pi * 440 / rate) * 0.3
        frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        yield frame


def encode(path: Path, odd: Odd) -> None:
    if odd.cover:
        return encode_with_cover(path, odd)
    with av.open(str(path), "w", options=odd.muxer) as container:
        container.flags |= av.container.Flags.bitexact.value
        sound = container.add_stream("aac", rate=8000, layout="mono") if odd.audio == "first" else None
        sizes = [(32, 48), odd.size] if odd.small_stream_first else [odd.size]
        streams = [add_video(container, odd, size) for size in sizes]
        if odd.audio == "last":
            sound = container.add_stream("aac", rate=8000, layout="mono")
        for stream, size in zip(streams, sizes):
            for frame in pictures(odd, size):
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
        if sound is not None:
            for frame in tone(odd.audio_seconds):
                container.mux(sound.encode(frame))
            container.mux(sound.encode())
    if odd.change is not None:
        path.write_bytes(odd.change(path.read_bytes()))
    return None


def encode_with_cover(path: Path, odd: Odd) -> None:
    """A picture that is larger than the video, as the first stream."""
    with av.open(str(path), "w") as container:
        container.flags |= av.container.Flags.bitexact.value
        cover = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 128, 192, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        stream = add_video(container, odd, odd.size)
        grey = av.VideoFrame.from_ndarray(np.full((128, 192, 3), 90, np.uint8), format="rgb24")
        grey = grey.reformat(format="yuvj420p")
        grey.pts, grey.time_base = 0, Fraction(1)
        container.mux(cover.encode(grey) + cover.encode())
        for frame in pictures(odd, odd.size):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def annex_b(odd: Odd, size: tuple[int, int], first_time: int) -> list[av.Packet]:
    """Packets of an encoder of its own, each key frame with its parameter sets in front."""
    context = av.CodecContext.create("libx264", "w")
    context.height, context.width = size
    context.pix_fmt, context.thread_count = "yuv420p", 1
    context.framerate, context.time_base = Fraction(30), Fraction(1, 30)
    context.options = encoder_options(odd)
    packets = []
    for frame in [*pictures(odd, size), None]:
        if frame is not None:
            frame.pts += first_time
        packets += context.encode(frame)
    return packets


def change_of_size(path: Path) -> None:
    """20 frames of 64x96, then 20 of 48x80, in one stream."""
    odd = Odd(num_frames=20, encoder="repeat-headers=1")
    with av.open(str(path), "w") as container:
        container.flags |= av.container.Flags.bitexact.value
        stream = add_video(container, odd, (64, 96))
        for packet in annex_b(odd, (64, 96), 0) + annex_b(odd, (48, 80), 20):
            packet.stream = stream
            packet.time_base = Fraction(1, 30)
            container.mux(packet)


def cut_by_edit_list(first: int, count: int) -> Callable[[bytes], bytes]:
    """The mp4's edit list shows `count` frames from `first` on (30 fps) and hides the rest."""

    def change(content: bytes) -> bytes:
        at = content.index(b"elst") + 12  # behind name, version and number of entries
        media_time = int.from_bytes(content[at + 4 : at + 8], "big") + first * 512  # the media's clock ticks at 15360
        entry = (count * 1000 // 30).to_bytes(4, "big") + media_time.to_bytes(4, "big")
        return content[:at] + entry + content[at + 8 :]

    return change


GAP = (*range(12), *range(30, 50))
VARIABLE = (*range(8), *range(8, 32, 3), *range(32, 44), *range(44, 60, 4))
LATE = tuple(range(150, 190))
NUMBER_0_TO_39 = Odd(gop=12)
ODD: dict[str, Odd | Callable[[Path], None]] = {
    "audio_first.mp4": Odd(audio="first"),
    "av1.mp4": Odd(codec="libsvtav1", gop=20),
    "av1.webm": Odd(codec="libsvtav1", gop=20),
    "bt709.mp4": Odd(encoder="colormatrix=bt709:colorprim=bt709:transfer=bt709"),
    "cfr15.mp4": Odd(rate=15),
    "cfr24.mp4": Odd(rate=24),
    "cfr25.mp4": Odd(rate=25),
    "cfr2997.mp4": Odd(rate=Fraction(30000, 1001)),
    "cfr30_b3_gop12.mp4": NUMBER_0_TO_39,
    "cfr30_b3_gop250.mp4": Odd(),
    "cfr30_nob_1key.mp4": Odd(b_frames=0),
    "cfr60.mp4": Odd(rate=60, num_frames=79),
    "cover_first.mp4": Odd(cover=True),
    "editlist_cut.mp4": Odd(gop=12, change=cut_by_edit_list(9, 20)),
    "editlist_cut_gop250.mp4": Odd(change=cut_by_edit_list(9, 20)),
    "fragmented.mp4": Odd(gop=12, muxer={"movflags": "frag_keyframe+empty_moov"}),
    "fullrange.mp4": Odd(pixels="yuvj420p"),
    "gray.mp4": Odd(pixels="gray"),
    "h264.mkv": Odd(gop=12),
    "h264.ts": Odd(gop=12),
    "h264_10bit.mp4": Odd(pixels="yuv420p10le"),
    "hevc_10bit.mp4": Odd(codec="libx265", pixels="yuv420p10le"),
    "hevc_b.mp4": Odd(codec="libx265", gop=12),
    "interlaced.mp4": Odd(encoder="tff=1"),
    "intra_refresh_nokey.mp4": Odd(gop=12, encoder="intra-refresh=1"),
    "mpeg4.avi": Odd(codec="mpeg4", gop=12, b_frames=0),
    "mpeg4_b.avi": Odd(codec="mpeg4", gop=12, b_frames=2),
    "odd_dims_420_vp9.webm": Odd(codec="libvpx-vp9", size=(63, 97), gop=20),
    "odd_dims_444.mp4": Odd(size=(63, 97), pixels="yuv444p"),
    "opengop12_b3.mp4": Odd(gop=12, encoder="open-gop=1"),
    "raw.h264": Odd(gop=12),
    "res_change.mkv": change_of_size,
    "res_change.ts": change_of_size,
    "rot180.mp4": Odd(rotation=180, turns=2),
    "rot270.mp4": Odd(rotation=270, turns=3),
    "rot90.mp4": Odd(rotation=90, turns=1),
    "sar_16_9.mp4": Odd(aspect=Fraction(16, 9)),
    "short_1f.mp4": Odd(num_frames=1),
    "short_20f.mp4": Odd(num_frames=20),
    "short_3f.mp4": Odd(num_frames=3),
    "start5.mp4": Odd(times=LATE, gop=12),
    "start5_mkv.mkv": Odd(times=LATE, gop=12),
    "start5_noelst.mp4": Odd(times=LATE, gop=12, muxer={"use_editlist": "0"}),
    "two_streams.mp4": Odd(small_stream_first=True, gop=12),
    "vfr_b3.mp4": Odd(num_frames=len(VARIABLE), times=VARIABLE),
    "vfr_gap.mp4": Odd(num_frames=len(GAP), times=GAP),
    "video_late_audio.mp4": Odd(times=tuple(range(30, 70)), audio="last", audio_seconds=2.3),
    "vp9.webm": Odd(codec="libvpx-vp9", gop=20),
    "with_audio.mp4": Odd(audio="last", gop=12),
}


def plain_truth(path: Path, odd: Odd | None) -> dict:
    """Count, times in seconds and sampled pictures of the largest stream, decoded from the start by PyAV's own loop."""
    with av.open(str(path)) as container:
        covers = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & covers]
        chosen = max(streams, key=lambda stream: stream.width * stream.height)
        number = chosen.index
        hidden = {packet.pts for packet in container.demux(chosen) if packet.is_discard}
    with av.open(str(path)) as container:
        stream = container.streams[number]
        stream.codec_context.thread_count = 1
        frames = [frame for frame in container.decode(stream) if frame.pts is None or frame.pts not in hidden]
        height, width = frames[0].height, frames[0].width
        times = [frame.time for frame in frames]
        arrays = [
            frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="BICUBIC") for frame in frames
        ]
    turned = [np.rot90(array, odd.turns if isinstance(odd, Odd) else 0) for array in arrays]
    height, width = turned[0].shape[:2]
    indices = sorted(set(np.linspace(0, len(turned) - 1, SAMPLES).astype(int).tolist()))
    return {
        "num_frames": len(turned),
        "height": height,
        "width": width,
        "seconds": None if None in times else [round(float(time), 6) for time in times],
        "numbers": [frame_number(array) for array in arrays],
        "mean_rgb_2x2": {str(index): quadrant_means(turned[index]) for index in indices},
    }


def quadrant_means(picture: np.ndarray) -> list[list[float]]:
    """Mean RGB of the upper left, upper right, lower left and lower right quarter of a uint8 (H, W, 3)."""
    height, width = picture.shape[0] // 2, picture.shape[1] // 2
    halves, sides = (picture[:height], picture[height:]), (slice(width), slice(width, None))
    quarters = [half[:, side] for half in halves for side in sides]
    return [[round(float(mean), 2) for mean in quarter.mean((0, 1))] for quarter in quarters]


def main(arguments: list[str]) -> None:
    from make_bad_clips import BAD, write_bad_clips

    folder = Path(arguments[0]) if arguments else CLIPS
    names = arguments[1:] or [*ODD, *BAD]
    truth_file = folder / "truth.json"
    truth = json.loads(truth_file.read_text()) if truth_file.exists() else {"odd": {}, "bad": {}}
    (folder / "odd").mkdir(parents=True, exist_ok=True)
    for name in names:
        if name in ODD:
            path, odd = folder / "odd" / name, ODD[name]
            encode(path, odd) if isinstance(odd, Odd) else odd(path)
            truth["odd"][name] = plain_truth(path, odd)
    write_bad_clips(folder / "odd", folder / "bad", [name for name in names if name in BAD])
    truth["bad"] = {name: {"expect": bad.expect, "wrong": bad.wrong} for name, bad in BAD.items()}
    lines = {
        kind: ",\n".join(f'  "{name}": {json.dumps(facts)}' for name, facts in sorted(truth[kind].items()))
        for kind in ("odd", "bad")
    }
    truth_file.write_text("{\n" + ",\n".join(f' "{kind}": {{\n{text}\n }}' for kind, text in lines.items()) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
