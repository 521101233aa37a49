"""Segments join into one mp4 without a frame or a sample out of place, and a failed write leaves nothing behind."""

from __future__ import annotations

import io
import logging
import os
import struct
import subprocess
import sys
import textwrap
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from s2v_core.errors import Interrupted, MediaError, OutputError
from s2v_core.media.audio_io import open_sound
from s2v_core.media.video_io import (
    PixelTags,
    join_segments,
    probe_video,
    read_frames,
    read_tags,
    read_timed_frames,
    require_writable,
    to_pictures,
    write_segment,
)

LENGTHS = (20, 1, 2, 7)   # frames of the segments: with B-frames, and too short for them
RATE = 44_100             # Hz


def pictures(count: int, seed: int = 0, height: int = 64, width: int = 96):
    """A coloured pattern that moves 3 pixels a frame."""
    blocks = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    pattern = blocks.repeat(8, 0).repeat(8, 1)
    return (np.roll(pattern, 3 * index, axis=1) for index in range(count))


def click(seconds: float = 1.3, at: float = 0.5, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """[C, S] float32: faint noise and one loud click."""
    noise = np.random.default_rng(1).normal(0, 1e-3, (channels, round(seconds * rate)))
    noise[:, round(at * rate)] = 0.9
    return noise.astype(np.float32)


def write_sound(path: Path, codec: str, container: str, samples: np.ndarray, rate: int = RATE) -> Path:
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(samples)]
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def read_sound(path: Path) -> tuple[np.ndarray, int]:
    """[S] of the first channel, and Hz."""
    with av.open(str(path)) as container:
        frames = list(container.decode(container.streams.best("audio")))
    resampler = av.AudioResampler("fltp", frames[0].layout.name, frames[0].sample_rate)
    parts = [part.to_ndarray()[0] for frame in frames for part in resampler.resample(frame)]
    return np.concatenate(parts), frames[0].sample_rate


def packets(path: Path, kind: str) -> list[av.Packet]:
    with av.open(str(path)) as container:
        return [packet for packet in container.demux(container.streams.best(kind)) if packet.size]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def segments(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("take")
    paths = [folder / f"{index}.mp4" for index in range(len(LENGTHS))]
    for index, (path, length) in enumerate(zip(paths, LENGTHS, strict=True)):
        write_segment(path, pictures(length, seed=index), fps=16)
    return paths


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return write_sound(tmp_path_factory.mktemp("sound") / "click.m4a", "aac", "mp4", click())


@pytest.fixture
def joined(segments, sound, tmp_path) -> Path:
    join_segments(segments, tmp_path / "out.mp4", audio=sound, fps=16, num_frames=sum(LENGTHS))
    return tmp_path / "out.mp4"


# ---- the picture ---------------------------------------------------------------------------------------------------


def test_joined_segments_decode_to_exactly_the_segments_frames(segments, joined):
    expected = [frame for segment in segments for frame in read_frames(segment)]
    frames = list(read_frames(joined))
    assert len(frames) == len(expected) == sum(LENGTHS)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(frames, expected, strict=True))


def test_segments_hold_the_pictures_they_were_given(segments):
    for ours, given in zip(read_frames(segments[0]), pictures(LENGTHS[0]), strict=True):
        luma = (0.2126, 0.7152, 0.0722)   # brightness alone: colour has half the pixels
        assert np.abs(ours @ luma - given @ luma).mean() < 3


def test_decoding_times_rise_and_never_pass_showing_times(joined):
    stamps = [(packet.dts, packet.pts) for packet in packets(joined, "video")]
    assert all(a < b for (a, _), (b, _) in zip(stamps, stamps[1:], strict=False))
    assert all(dts <= pts for dts, pts in stamps)
    assert [pts for _, pts in stamps] != sorted(pts for _, pts in stamps)   # there are B-frames to get wrong


def test_every_segment_opens_with_a_frame_that_needs_no_other(joined):
    starts = {sum(LENGTHS[:index]) for index in range(len(LENGTHS))}
    keys = {round(p.pts * p.time_base * 16) for p in packets(joined, "video") if p.is_keyframe}
    assert starts <= keys


@pytest.mark.parametrize("fps", [1, 12.5, 16, 23.976, 29.97, 30, 120])
def test_frame_k_is_shown_at_k_over_fps_and_the_length_is_exact(tmp_path, sound, fps):
    parts = [tmp_path / f"{index}.mp4" for index in range(3)]
    for part in parts:
        write_segment(part, pictures(5), fps=fps)
    join_segments(parts, tmp_path / "out.mp4", audio=sound, fps=fps, num_frames=15)
    info = probe_video(tmp_path / "out.mp4")
    assert info.num_frames == 15
    assert info.duration == pytest.approx(15 / fps, abs=1e-9) and info.fps == pytest.approx(fps, abs=1e-6)
    for index, frame in enumerate(read_timed_frames(tmp_path / "out.mp4")):
        assert frame.seconds == pytest.approx(index / fps, abs=1e-9)
        assert frame.frame.pts * frame.frame.time_base == pytest.approx(index / fps, abs=1e-9)


def test_colours_are_tagged_bt709_and_survive(tmp_path, joined):
    red = np.full((64, 64, 3), (200, 30, 60), np.uint8)
    write_segment(tmp_path / "red.mp4", [red] * 3, fps=16)
    for frame in read_frames(tmp_path / "red.mp4"):
        assert np.abs(frame.astype(int) - red).max() <= 3
    for path in (tmp_path / "red.mp4", joined):
        with av.open(str(path)) as container:
            stream = container.streams.video[0].codec_context
            assert (stream.color_primaries, stream.color_trc, stream.colorspace, stream.color_range) == (1, 1, 1, 1)
            assert (stream.name, stream.pix_fmt) == ("h264", "yuv420p")


WIDE = PixelTags(aspect=Fraction(4, 3), primaries=9, transfer=18, matrix=9)   # HDR (HLG) of a camera with oblong pixels


def test_oblong_pixels_and_the_wide_colours_of_hdr_are_said_and_survive(tmp_path, sound):
    red = np.full((64, 64, 3), (200, 30, 60), np.uint8)
    write_segment(tmp_path / "0.mp4", [red] * 3, fps=16, tags=WIDE)
    join_segments([tmp_path / "0.mp4"], tmp_path / "out.mp4", audio=sound, fps=16, num_frames=3)
    assert read_tags(tmp_path / "0.mp4") == read_tags(tmp_path / "out.mp4") == WIDE
    assert all(np.abs(frame.astype(int) - red).max() <= 3 for frame in read_frames(tmp_path / "out.mp4"))


def test_usual_footage_is_of_square_pixels_in_bt709(segments):
    assert read_tags(segments[0]) == PixelTags() and not PixelTags().is_hdr and WIDE.is_hdr


def test_frames_become_pictures_by_rounding():
    values = torch.tensor([-1.5, -1.0, -1 + 2 * 0.49 / 255, -1 + 2 * 0.51 / 255, 0.0, 1.0, 2.0])
    frames = values.view(1, 1, 7, 1, 1).expand(1, 3, 7, 2, 2)
    made = list(to_pictures(frames))
    assert [picture[0, 0, 0] for picture in made] == [0, 0, 0, 1, 128, 255, 255]
    assert all(picture.shape == (2, 2, 3) and picture.dtype == np.uint8 for picture in made)


# ---- the sound -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "container"),
    [("aac", "mp4"), ("aac", "matroska"), ("libmp3lame", "mp3"), ("ac3", "ac3"), ("eac3", "eac3"), ("alac", "mp4")],
)
def test_sound_that_an_mp4_can_carry_is_copied_packet_by_packet(segments, tmp_path, codec, container):
    source = write_sound(tmp_path / "sound", codec, container, click())
    join_segments(segments, tmp_path / "out.mp4", audio=source, fps=16, num_frames=sum(LENGTHS))
    assert [bytes(p) for p in packets(tmp_path / "out.mp4", "audio")] == [bytes(p) for p in packets(source, "audio")]
    ours, theirs = read_sound(tmp_path / "out.mp4")[0], read_sound(source)[0]
    length = min(len(ours), len(theirs))
    assert np.array_equal(ours[:length], theirs[:length]) and abs(len(ours) - len(theirs)) <= 1152


@pytest.mark.parametrize("container", ["adts", "mpegts"])
def test_aac_without_a_container_is_copied_without_its_own_headers(segments, tmp_path, container):
    source = write_sound(tmp_path / "sound", "aac", container, click())
    join_segments(segments, tmp_path / "out.mp4", audio=source, fps=16, num_frames=sum(LENGTHS))
    given = [bytes(packet)[7:] for packet in packets(source, "audio")]
    assert [bytes(packet) for packet in packets(tmp_path / "out.mp4", "audio")] == given


@pytest.mark.parametrize(
    ("codec", "container", "rate", "channels"),
    [
        ("pcm_s16le", "wav", 8_000, 1), ("pcm_s16le", "wav", 16_000, 1), ("pcm_f32le", "wav", 44_100, 2),
        ("pcm_s16le", "wav", 192_000, 6), ("flac", "flac", 96_000, 2), ("libopus", "ogg", 48_000, 2),
        ("libmp3lame", "mp3", 8_000, 1),
    ],
)  # fmt: skip
def test_other_sound_becomes_aac_of_the_same_length_and_timing(segments, tmp_path, codec, container, rate, channels):
    source = write_sound(tmp_path / "sound", codec, container, click(rate=rate, channels=channels), rate)
    join_segments(segments, tmp_path / "out.mp4", audio=source, fps=16, num_frames=sum(LENGTHS))
    samples, out_rate = read_sound(tmp_path / "out.mp4")
    assert abs(np.abs(samples).argmax() / out_rate - 0.5) < 1e-3
    with av.open(str(tmp_path / "out.mp4")) as result:
        stream = result.streams.audio[0]
        assert stream.codec_context.name == "aac" and stream.channels == min(channels, 2)
        assert float(stream.duration * stream.time_base) == pytest.approx(1.3, abs=0.01)


def test_picture_and_sound_start_together_and_priming_is_not_heard(joined):
    with av.open(str(joined)) as container:
        assert container.streams.video[0].start_time == container.streams.audio[0].start_time == 0
    samples, rate = read_sound(joined)
    assert abs(np.abs(samples).argmax() / rate - 0.5) < 1e-3


def test_sound_that_starts_late_in_its_file_is_heard_from_zero(segments, tmp_path):
    late = tmp_path / "late.mkv"
    with av.open(str(late), "w") as output:
        stream = output.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(click(), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 3 * RATE, Fraction(1, RATE)
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    join_segments(segments, tmp_path / "out.mp4", audio=late, fps=16, num_frames=sum(LENGTHS))
    theirs, ours = read_sound(late)[0], read_sound(tmp_path / "out.mp4")[0]
    assert abs(int(np.abs(theirs).argmax()) - int(np.abs(ours).argmax())) <= RATE // 1000   # matroska's clock


def test_joined_recordings_whose_clock_starts_again_are_heard_one_after_the_other(segments, tmp_path):
    source = write_sound(tmp_path / "once.ts", "aac", "mpegts", click(seconds=0.7, at=0.3))
    (tmp_path / "twice.ts").write_bytes(source.read_bytes() * 2)
    join_segments(segments, tmp_path / "out.mp4", audio=tmp_path / "twice.ts", fps=16, num_frames=sum(LENGTHS))
    ours, theirs = read_sound(tmp_path / "out.mp4")[0], read_sound(tmp_path / "twice.ts")[0]
    assert np.array_equal(ours, theirs) and len(ours) > 1.4 * RATE
    times = [packet.pts * packet.time_base for packet in packets(tmp_path / "out.mp4", "audio")]
    assert np.diff([float(time) for time in times]) == pytest.approx(1024 / RATE, abs=2e-4)


def spoilt_flac(folder: Path) -> Path:
    """One packet amid the others holds nothing that can be decoded."""
    source = write_sound(folder / "whole.mka", "flac", "matroska", click())
    with av.open(str(source)) as whole, av.open(str(folder / "spoilt.mka"), "w", format="matroska") as output:
        stream = output.add_stream_from_template(whole.streams.audio[0])
        for count, packet in enumerate(packet for packet in whole.demux(audio=0) if packet.size):
            written = av.Packet(b"\xff" * 40 if count == 2 else bytes(packet))
            written.pts, written.dts, written.time_base = packet.pts, packet.dts, packet.time_base
            written.duration, written.stream = packet.duration, stream
            output.mux(written)
    return folder / "spoilt.mka"


def glued_mp3(folder: Path) -> Path:
    """Between two recordings in one file stands a header that is no sound, and the second is in stereo."""
    parts = [
        write_sound(folder / f"{channels}.mp3", "libmp3lame", "mp3", click(rate=8000, channels=channels), 8000)
        for channels in (1, 2)
    ]
    (folder / "glued.mp3").write_bytes(b"".join(part.read_bytes() for part in parts))
    return folder / "glued.mp3"


@pytest.mark.parametrize("make", [spoilt_flac, glued_mp3])
def test_sound_that_can_be_opened_can_be_joined_and_is_heard_as_the_model_hears_it(segments, tmp_path, caplog, make):
    source = make(tmp_path)
    join_segments(segments, tmp_path / "out.mp4", audio=source, fps=16, num_frames=sum(LENGTHS))
    with open_sound(source) as heard, open_sound(tmp_path / "out.mp4") as joined:
        num = min(heard.num_samples, joined.num_samples)
        assert num == pytest.approx(16_000 * min(float(heard.duration), sum(LENGTHS) / 16), abs=200)
        assert abs(int(np.abs(heard.read(0, num)).argmax()) - int(np.abs(joined.read(0, num)).argmax())) <= 16
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 1 and "one packet of sound cannot be decoded and is left out" in told[0]


def gap_in_mp4(seconds: float) -> float:
    return 0.4 if seconds >= 0.3 else 0.0


def small_gaps_in_matroska(seconds: float) -> float:
    return 0.04 * int(seconds / 0.1)


@pytest.mark.parametrize(("container", "later"), [("mp4", gap_in_mp4), ("matroska", small_gaps_in_matroska)])
def test_sound_with_gaps_on_its_clock_plays_when_the_model_hears_it(segments, tmp_path, container, later):
    whole = write_sound(tmp_path / "whole.m4a", "aac", "mp4", click())
    with av.open(str(whole)) as source, av.open(str(tmp_path / "gaps"), "w", format=container) as output:
        stream = output.add_stream_from_template(source.streams.audio[0])
        for packet in (packet for packet in source.demux(audio=0) if packet.size):
            packet.pts = packet.dts = packet.pts + round(later(float(packet.pts * packet.time_base)) * RATE)
            packet.stream = stream
            output.mux(packet)
    join_segments(segments, tmp_path / "out.mp4", audio=tmp_path / "gaps", fps=16, num_frames=sum(LENGTHS))
    with av.open(str(tmp_path / "out.mp4")) as result:
        frames = list(result.decode(audio=0))
    loudest = max(frames, key=lambda frame: np.abs(frame.to_ndarray()).max())
    played = loudest.time + np.abs(loudest.to_ndarray()[0]).argmax() / RATE
    with open_sound(tmp_path / "gaps") as sound:
        heard = np.abs(sound.read(0, sound.num_samples)).argmax() / 16_000
    assert heard == pytest.approx(0.5, abs=0.03) and played == pytest.approx(heard, abs=2e-3)


@pytest.mark.parametrize(("codec", "container"), [("aac", "mp4"), ("pcm_s16le", "wav")])
def test_longer_sound_ends_with_the_picture(segments, tmp_path, codec, container):
    source = write_sound(tmp_path / "sound", codec, container, click(seconds=4))
    join_segments(segments, tmp_path / "out.mp4", audio=source, fps=16, num_frames=sum(LENGTHS))
    with av.open(str(tmp_path / "out.mp4")) as result:
        for stream in result.streams:
            assert float(stream.duration * stream.time_base) == pytest.approx(sum(LENGTHS) / 16, abs=1e-4)
        assert result.duration / av.time_base == pytest.approx(sum(LENGTHS) / 16, abs=1e-4)


@pytest.mark.parametrize(
    ("codec", "container"), [("aac", "mp4"), ("libmp3lame", "mp3"), ("alac", "mp4"), ("pcm_s16le", "wav")]
)
@pytest.mark.parametrize("start", ["0.2", "0.317"])
def test_a_stretch_of_the_sound_is_heard_from_its_first_sample_to_its_last(
    segments, tmp_path, codec, container, start
):
    source = write_sound(tmp_path / "sound", codec, container, click(seconds=4, at=0.5))
    join_segments(
        segments, tmp_path / "out.mp4", audio=source, fps=16, num_frames=sum(LENGTHS),
        audio_start=Fraction(start), audio_seconds=Fraction(1),
    )  # fmt: skip
    samples, rate = read_sound(tmp_path / "out.mp4")
    assert np.abs(samples).argmax() / rate == pytest.approx(0.5 - float(start), abs=1e-3)
    with av.open(str(tmp_path / "out.mp4")) as result:
        sound = result.streams.audio[0]
        assert float(sound.duration * sound.time_base) == pytest.approx(1.0, abs=2e-3)
        assert result.streams.video[0].start_time == 0


def test_shorter_sound_keeps_its_own_length(joined):
    with av.open(str(joined)) as result:
        stream = result.streams.audio[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(1.3, abs=1e-3)


def test_the_sound_of_a_video_is_found(segments, joined, tmp_path):
    join_segments(segments[:1], tmp_path / "again.mp4", audio=joined, fps=16, num_frames=LENGTHS[0])
    assert packets(tmp_path / "again.mp4", "audio") and probe_video(tmp_path / "again.mp4").audio_codec == "aac"


def test_a_name_with_a_colon_in_the_current_folder_is_a_file(segments, sound, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    audio, part, output = Path("rec-2026-11-21T13:08:09.m4a"), Path("0:1.mp4"), Path("10:30.mp4")
    audio.write_bytes(sound.read_bytes())
    write_segment(part, pictures(4), fps=16)
    join_segments([part], output, audio=audio, fps=16, num_frames=4)
    with open_sound(audio) as heard:
        assert heard.duration > 1 and probe_video(output).num_frames == len(list(read_frames(output))) == 4


# ---- the file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("codec", "container"), [("aac", "mp4"), ("pcm_s16le", "wav")])
def test_the_same_inputs_give_the_same_bytes(tmp_path, codec, container):
    source = write_sound(tmp_path / "sound", codec, container, click())
    for name in ("one", "two"):
        write_segment(tmp_path / name / "0.mp4", pictures(9), fps=16)
        join_segments([tmp_path / name / "0.mp4"], tmp_path / name / "out.mp4", audio=source, fps=16, num_frames=9)
    for name in ("0.mp4", "out.mp4"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    with av.open(str(tmp_path / "one" / "out.mp4")) as container:
        assert "creation_time" not in container.metadata and "encoder" not in container.metadata


def test_encoding_again_and_again_never_gives_other_bytes(tmp_path):
    """Some of x264's options do, on some processors, in a few runs of a hundred."""
    given = list(pictures(40))
    results = set()
    for _ in range(25):
        write_segment(tmp_path / "0.mp4", given, fps=16)
        results.add((tmp_path / "0.mp4").read_bytes())
    assert len(results) == 1


def test_playing_can_start_before_all_is_there(joined):
    data = joined.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_nothing_but_the_result_is_left(joined, tmp_path):
    assert files(tmp_path) == {"out.mp4"}


def full(path: Path) -> None:
    """The next write to this output meets a disk without room (a device that has none stands in for its part file)."""
    path.with_name(f".{path.name}.part").symlink_to("/dev/full")


def test_a_full_disk_is_told_and_leaves_the_earlier_result_and_the_segments(segments, sound, tmp_path):
    output, before = tmp_path / "out.mp4", [segment.read_bytes() for segment in segments]
    output.write_bytes(b"an earlier result")
    full(output)
    with pytest.raises(OutputError, match=r"out\.mp4 cannot be written: the disk is full; free space"):
        join_segments(segments, output, audio=sound, fps=16, num_frames=sum(LENGTHS))
    assert files(tmp_path) == {"out.mp4"} and output.read_bytes() == b"an earlier result"
    assert [segment.read_bytes() for segment in segments] == before


def test_a_segment_on_a_full_disk_is_told_and_not_left_half(tmp_path):
    full(tmp_path / "0.mp4")
    with pytest.raises(OutputError, match="the disk is full"):
        write_segment(tmp_path / "0.mp4", pictures(40), fps=16)
    assert files(tmp_path) == set()


@pytest.mark.parametrize("limit", [2_000, 10_000, 20_000])
def test_room_that_runs_out_half_way_leaves_nothing(segments, sound, tmp_path, limit):
    """A limit on the size of files, in a process of its own, cuts the write in its middle or in its last pass."""
    script = textwrap.dedent(f"""
        import resource, signal
        from pathlib import Path
        from s2v_core.errors import OutputError
        from s2v_core.media.video_io import join_segments
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        segments = [Path(name) for name in {[str(segment) for segment in segments]!r}]
        try:
            join_segments(segments, Path({str(tmp_path / "out.mp4")!r}), audio=Path({str(sound)!r}), fps=16,
                          num_frames={sum(LENGTHS)})
        except OutputError as error:
            print("told:", error)
    """)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "told:" in run.stdout and "File too large" in run.stdout, run.stdout + run.stderr
    assert files(tmp_path) == set()


def test_a_place_that_cannot_be_written_is_told(segments, sound, tmp_path):
    """A file where a folder is needed, and a file system that takes no files: root may write to read-only folders."""
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "out.mp4", Path("/proc/out.mp4")):
        with pytest.raises(OutputError, match=r"out\.mp4 cannot be written \(.+\); choose a folder"):
            join_segments(segments, output, audio=sound, fps=16, num_frames=sum(LENGTHS))
        with pytest.raises(OutputError, match=r"out\.mp4 cannot be written"):
            require_writable(output)
    with pytest.raises(OutputError, match="is a folder"):
        require_writable(tmp_path)


def test_a_link_stays_and_the_file_that_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "old.mp4").write_bytes(b"old")
    for name in ("old.mp4", "new.mp4"):
        link = tmp_path / f"link to {name}"
        link.symlink_to(tmp_path / "disk" / name)
        require_writable(link)
        write_segment(link, pictures(2), fps=16)
        assert link.is_symlink() and probe_video(tmp_path / "disk" / name).num_frames == 2
    assert files(tmp_path / "disk") == {"old.mp4", "new.mp4"}


def test_asking_whether_a_place_can_be_written_leaves_it_as_it_was(tmp_path):
    (tmp_path / "old.mp4").write_bytes(b"old")
    for name in ("new.mp4", "old.mp4", "no/folder/yet/new.mp4"):
        require_writable(tmp_path / name)
    assert not (tmp_path / "no").exists()
    assert files(tmp_path) == {"old.mp4"} and (tmp_path / "old.mp4").read_bytes() == b"old"


def test_asking_whether_a_place_can_be_written_leaves_a_job_alone_that_is_writing_there(tmp_path):
    def asked_while_written():
        yield from pictures(58)   # more than the encoder holds back: the file is begun
        require_writable(tmp_path / "out.mp4")
        yield from pictures(2)

    write_segment(tmp_path / "out.mp4", asked_while_written(), fps=16)
    assert probe_video(tmp_path / "out.mp4").num_frames == 60 and files(tmp_path) == {"out.mp4"}


def test_a_stop_while_encoding_leaves_no_segment_and_comes_through(tmp_path):
    def stopping():
        yield from pictures(5)
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        write_segment(tmp_path / "0.mp4", stopping(), fps=16)
    assert files(tmp_path) == set()


def test_segments_that_do_not_make_the_video_are_told(segments, sound, tmp_path):
    output = tmp_path / "out.mp4"
    (tmp_path / "cut.mp4").write_bytes(segments[0].read_bytes()[:500])
    write_segment(tmp_path / "larger.mp4", pictures(4, height=128), fps=16)
    for parts, words in {
        (segments[0],): "hold 20 frames and the video has 30",
        (segments[0], tmp_path / "cut.mp4"): "cut.mp4 is damaged",
        (segments[0], tmp_path / "larger.mp4"): r"larger\.mp4 was encoded unlike 0\.mp4",
    }.items():
        with pytest.raises(OutputError, match=words):
            join_segments(parts, output, audio=sound, fps=16, num_frames=sum(LENGTHS))
        assert not output.exists()


def test_sound_that_cannot_be_read_is_told_and_leaves_no_output(segments, tmp_path):
    (tmp_path / "text.wav").write_text("no sound")
    for audio, words in {
        tmp_path / "missing.wav": "there is no file",
        tmp_path / "text.wav": "cannot be read",
        segments[0]: "has no sound track",
    }.items():
        with pytest.raises(MediaError, match=words):
            join_segments(segments, tmp_path / "out.mp4", audio=audio, fps=16, num_frames=sum(LENGTHS))
    assert files(tmp_path) == {"text.wav"}


# ---- reading -------------------------------------------------------------------------------------------------------


def test_what_is_no_video_is_refused_with_the_reason(sound, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    cover = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(cover, "PNG")
    song = write_sound(tmp_path / "song.mp3", "libmp3lame", "mp3", click())
    song.write_bytes(id3_cover(cover.getvalue()) + song.read_bytes())
    for path, words in {
        tmp_path / "missing.mp4": "there is no file",
        tmp_path: "is a folder",
        tmp_path / "text.mp4": "cannot be read",
        sound: "has no picture track",
        song: "has no picture track",
    }.items():
        for read in (probe_video, lambda path: next(read_frames(path))):
            with pytest.raises(MediaError, match=words) as caught:
                read(path)
            assert str(path) in str(caught.value)


def id3_cover(png: bytes) -> bytes:
    """An ID3v2.3 tag that holds a front cover."""
    body = b"\0image/png\0\3\0" + png
    frame = b"APIC" + struct.pack(">I", len(body)) + b"\0\0" + body
    size = bytes((len(frame) >> shift) & 127 for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + frame


@pytest.mark.parametrize(
    ("codec", "container", "pix_fmt"),
    [
        ("libx264", "matroska", "yuv420p"), ("libvpx-vp9", "webm", "yuv444p"), ("mpeg4", "avi", "yuv420p"),
        ("ffv1", "matroska", "bgr0"), ("gif", "gif", "bgr8"), ("mjpeg", "mov", "yuvj420p"),
    ],
)  # fmt: skip
def test_common_kinds_of_video_are_read_with_their_times_and_colours(tmp_path, codec, container, pix_fmt):
    path = tmp_path / f"video.{container}"
    colour = (200, 30, 60)
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        for index in range(10):
            picture = np.full((48, 64, 3), colour, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = index, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    frames = list(read_timed_frames(path))
    info = probe_video(path)
    assert [frame.seconds for frame in frames] == pytest.approx([index / 10 for index in range(10)], abs=2e-3)
    assert (info.num_frames, info.width, info.height) == (10, 64, 48)
    assert info.duration == pytest.approx(1.0, abs=0.01) and info.fps == pytest.approx(10, abs=0.1)
    for frame in frames:   # a GIF mixes 256 colours
        assert np.abs(frame.picture().mean(axis=(0, 1)) - colour).max() <= (12 if codec == "gif" else 3)


def test_a_varying_rate_keeps_its_times(tmp_path):
    times = [0, 40, 50, 300, 310, 990]
    with av.open(str(tmp_path / "vary.mkv"), "w") as output:
        stream = output.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time, picture in zip(times, pictures(len(times), height=64, width=64), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    read = [frame.seconds for frame in read_timed_frames(tmp_path / "vary.mkv")]
    assert read == pytest.approx([time / 1000 for time in times], abs=1e-6)


def test_a_phone_held_upright_gives_upright_pictures(segments, tmp_path):
    write_segment(tmp_path / "oblong.mp4", pictures(1), fps=16, tags=WIDE)
    quarter_turn(tmp_path / "oblong.mp4", tmp_path / "turned.mp4")
    assert read_tags(tmp_path / "turned.mp4").aspect == 1 / WIDE.aspect
    quarter_turn(segments[0], tmp_path / "upright.mp4")
    turned, stored = next(read_frames(tmp_path / "upright.mp4")), next(read_frames(segments[0]))
    assert np.array_equal(turned, np.rot90(stored, k=-1))


def quarter_turn(video: Path, output: Path) -> None:
    """The same file, to be shown a quarter clockwise."""
    data = bytearray(video.read_bytes())
    matrix = data.index(b"tkhd") + 44
    assert struct.unpack_from(">9i", data, matrix) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, matrix, 0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    output.write_bytes(data)


def test_a_video_that_breaks_off_is_told(tmp_path):
    write_segment(tmp_path / "whole.mp4", pictures(60, height=128, width=128), fps=16)
    data = (tmp_path / "whole.mp4").read_bytes()
    start = data.index(b"mdat") + 4
    (tmp_path / "broken.mp4").write_bytes(data[: start + 2000] + os.urandom(len(data) - start - 2000))
    with pytest.raises(MediaError, match="cannot be read"):
        list(read_frames(tmp_path / "broken.mp4"))


def test_frames_that_come_unevenly_are_joined_at_their_own_times(tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "sound.wav", "pcm_f32le", "wav", np.zeros((1, RATE), np.float32) + 0.1)
    times = [0.0, 0.02, 0.1, 0.15, 0.151, 0.3, 0.42, 0.5, 0.51, 0.7, 0.8]
    parts = [tmp_path / "0.mp4", tmp_path / "1.mp4"]
    for part, count in zip(parts, (7, 3), strict=True):
        write_segment(part, pictures(count), fps=12.5)
    join_segments(parts, tmp_path / "out.mp4", audio=sound, fps=12.5, num_frames=10, times=times)
    shown = [frame.seconds for frame in read_timed_frames(tmp_path / "out.mp4")]
    assert np.allclose(shown, times[:-1], atol=1e-4)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.duration == 800_000   # microseconds: what a player shows


def test_a_video_with_odd_sides_keeps_them(tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "sound.wav", "pcm_f32le", "wav", np.zeros((1, RATE), np.float32) + 0.1)
    write_segment(tmp_path / "0.mp4", (picture[:47, :63] for picture in pictures(5)), fps=25)
    join_segments([tmp_path / "0.mp4"], tmp_path / "out.mp4", audio=sound, fps=25, num_frames=5)
    info = probe_video(tmp_path / "out.mp4")
    assert (info.width, info.height, info.num_frames) == (63, 47, 5)
