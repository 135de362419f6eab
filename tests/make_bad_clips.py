"""The faults of tests/data/clips/bad: bytes of sound clips, changed. `make_clips.py` calls this; it says how to run."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# What a reader does, `strict` or not: "refused": VideoError at open or at the first read. "sound": every frame right.
# "flagged": with `strict` refused as soon as a damaged frame is wanted; without, no frame that shows another picture
# than its own goes uncounted. "told": right frames, fewer than the file claims: a warning, with `strict` refused.
EXPECTATIONS = ("refused", "sound", "flagged", "told")


@dataclass(frozen=True)
class Bad:
    """A bad clip: how it is made of the sound clips in a folder, what is to happen, and what is wrong, in words."""

    expect: str
    wrong: str
    make: Callable[[Path], bytes]


def media_last(folder: Path) -> bytes:
    """40 frames in groups of 12; the tables behind the media data."""
    return (folder / "cfr30_b3_gop12.mp4").read_bytes()


def tables_first(folder: Path) -> bytes:
    """The same with its tables in front of the media data."""
    path = folder / "tables_first.mp4"
    with (
        av.open(str(folder / "cfr30_b3_gop12.mp4")) as source,
        av.open(str(path), "w", options={"movflags": "faststart"}) as target,
    ):
        target.flags |= av.container.Flags.bitexact.value
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    content = path.read_bytes()
    path.unlink()
    return content


def media(content: bytes) -> tuple[int, int]:
    """Begin and end of the media data."""
    begin = content.index(b"mdat") + 4
    return begin, begin - 8 + int.from_bytes(content[begin - 8 : begin - 4], "big")


def overwritten(content: bytes, at: int, by: bytes) -> bytes:
    return content[:at] + by + content[at + len(by) :]


def field(box: bytes, offset: int, by: bytes) -> Callable[[Path], bytes]:
    """Other bytes `offset` behind the name of a box (behind it: version and flags, then the fields)."""

    def make(folder: Path) -> bytes:
        content = media_last(folder)
        return overwritten(content, content.index(box) + 4 + offset, by)

    return make


def cut(share: float) -> Callable[[Path], bytes]:
    return lambda folder: tables_first(folder)[: int(len(tables_first(folder)) * share)]


def noise(folder: Path | None, count: int) -> bytes:
    return np.random.default_rng(0).bytes(count)


def damaged_media(first: float, last: float, by: Callable[[int], bytes]) -> Callable[[Path], bytes]:
    """Other bytes in a part of the media data (0..1)."""

    def make(folder: Path) -> bytes:
        content = media_last(folder)
        begin, end = media(content)
        start, stop = begin + int((end - begin) * first), begin + int((end - begin) * last)
        return overwritten(content, start, by(stop - start))

    return make


def flipped_bits(folder: Path) -> bytes:
    content = bytearray(media_last(folder))
    begin, end = media(bytes(content))
    rng = np.random.default_rng(2)
    for at in rng.integers(begin + (end - begin) // 2, begin + 3 * (end - begin) // 4, 40):
        content[at] ^= 1 << int(rng.integers(8))
    return bytes(content)


def long_duration(folder: Path) -> bytes:
    content = media_last(folder)
    for box in (b"mvhd", b"mdhd"):
        content = overwritten(content, content.index(box) + 20, b"\x7f\xff\xff\xff")
    return content


def large_sample_entry(folder: Path) -> bytes:
    content = media_last(folder)
    return overwritten(content, content.rindex(b"avc1") + 28, (16384).to_bytes(2, "big") * 2)


def with_encoder(name: str, codec: str, size: tuple[int, int], pixels: str, options: dict[str, str], count: int):
    """`count` grey frames."""

    def make(folder: Path) -> bytes:
        path = folder / name
        with av.open(str(path), "w", options={"update": "1"} if name.endswith(".jpg") else {}) as container:
            container.flags |= av.container.Flags.bitexact.value
            stream = container.add_stream(codec, rate=30, options=options)
            stream.height, stream.width = size
            stream.pix_fmt = pixels
            stream.codec_context.thread_count = 1
            frame = av.VideoFrame(size[1], size[0], pixels)
            for plane in frame.planes:
                plane.update(b"\x80" * plane.buffer_size)
            for t in range(count):
                frame.pts, frame.time_base = t, Fraction(1, 30)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        content = path.read_bytes()
        path.unlink()
        return content

    return make


def sound_only(folder: Path) -> bytes:
    from make_clips import tone

    path = folder / "sound_only.mp4"
    with av.open(str(path), "w") as container:
        container.flags |= av.container.Flags.bitexact.value
        stream = container.add_stream("aac", rate=8000, layout="mono")
        for frame in tone(1.0):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    content = path.read_bytes()
    path.unlink()
    return content


def every_seventh_packet_broken(folder: Path) -> bytes:
    content = media_last(folder)
    with av.open(str(folder / "cfr30_b3_gop12.mp4")) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for position, size in packets[3::7]:
        content = overwritten(content, position + size // 3, noise(None, size - size // 3))
    return content


def shifted_media(folder: Path) -> bytes:
    content = tables_first(folder)
    at = content.index(b"mdat") - 4
    return content[:at] + bytes(1000) + content[at:]


def sample_size(number: int, size: int) -> Callable[[Path], bytes]:
    return field(b"stsz", 12 + 4 * number, size.to_bytes(4, "big"))


GREY = {"cpu-used": "8", "deadline": "realtime", "crf": "60", "b": "0"}
BAD: dict[str, Bad] = {
    "empty.mp4": Bad("refused", "0 bytes", lambda folder: b""),
    "text_line.mp4": Bad("refused", "a line of text", lambda folder: b"not a video\n"),
    "html.mp4": Bad("refused", "a page", lambda folder: b"<html><body>404 Not Found</body></html>\n" * 20),
    "random.mp4": Bad("refused", "noise", lambda folder: noise(folder, 4000)),
    "zeros.mp4": Bad("refused", "zeros", lambda folder: bytes(4000)),
    "ftyp_only.mp4": Bad("refused", "cut before the tables", lambda f: tables_first(f)[:32]),
    "trunc_moov_last_50.mp4": Bad(
        "refused", "cut in half: the tables are lost", lambda f: media_last(f)[: len(media_last(f)) // 2]
    ),
    "header_only.mp4": Bad(
        "refused", "tables without media data", lambda f: tables_first(f)[: tables_first(f).index(b"mdat") + 4]
    ),
    "trunc_faststart_70.mp4": Bad("flagged", "cut at 70 %, the tables stand in front", cut(0.7)),
    "trunc_faststart_90.mp4": Bad("flagged", "cut at 90 %, the tables stand in front", cut(0.9)),
    "stsz_size_2G.mp4": Bad("told", "the table gives sample 20 a size of 2 GB", sample_size(20, 0x7FFFFFF0)),
    "stsz_count_16M.mp4": Bad("refused", "16 million samples", field(b"stsz", 8, (2**24).to_bytes(4, "big"))),
    "sample_entry_16384.mp4": Bad("sound", "the sample entry claims 16384x16384", large_sample_entry),
    "real_8192x4160.webm": Bad(
        "refused", "really that large", with_encoder("large.webm", "libvpx-vp9", (4160, 8192), "yuv420p", GREY, 1)
    ),
    "duration_lie.mp4": Bad("sound", "the duration is 2^31 - 1", long_duration),
    "timescale_zero.mp4": Bad("told", "a time base of nothing", field(b"mdhd", 12, bytes(4))),
    "stts_huge_delta.mp4": Bad("told", "the first frame lasts 2^30 - 1", field(b"stts", 12, b"\x3f\xff\xff\xff")),
    "offsets_shifted.mp4": Bad("refused", "the media data is not where the tables say", shifted_media),
    "mdat_all_garbage.mp4": Bad(
        "refused", "the media data is noise", damaged_media(0, 1, lambda count: noise(None, count))
    ),
    "first_key_garbage.mp4": Bad(
        "flagged", "noise at the beginning of the media data", damaged_media(0, 0.15, lambda count: noise(None, count))
    ),
    "bitflips_middle.mp4": Bad("flagged", "40 bits flipped", flipped_bits),
    "zeroed_middle.mp4": Bad("flagged", "zeros in the media data", damaged_media(0.4, 0.6, bytes)),
    "broken_packets.mp4": Bad("flagged", "noise in every seventh packet", every_seventh_packet_broken),
    "audio_only.mp4": Bad("refused", "sound without a picture", sound_only),
    "jpeg_named.mp4": Bad("refused", "a picture", with_encoder("grey.jpg", "mjpeg", (64, 96), "yuvj420p", {}, 1)),
    "playlist_concat.mp4": Bad(
        "refused", "names another file", lambda folder: b"ffconcat version 1.0\nfile ../odd/cfr25.mp4\n"
    ),
    "playlist_hls.mp4": Bad(
        "refused",
        "names another file",
        lambda folder: b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n../odd/h264.ts\n#EXT-X-ENDLIST\n",
    ),
}


def write_bad_clips(odd_folder: Path, folder: Path, names: list[str]) -> None:
    """Make the bad clips out of the sound ones in `odd_folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    work = folder / "work"
    work.mkdir()
    try:
        shutil.copy(odd_folder / "cfr30_b3_gop12.mp4", work)
        for name in names:
            (folder / name).write_bytes(BAD[name].make(work))
    finally:
        shutil.rmtree(work)
