"""Videos in, annotated videos out."""

import io
import json
import os
import random
import re
import sys

import av
import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from fake_server import serving
from mutate import mutated
from PIL import Image
from videos import cut, facts, write, write_sound

from m2f_cli.main import main
from m2f_client import InvalidRequest, UnreadableImage
from m2f_client.fake import result_of, stacked
from m2f_client.predict.annotated import OverlayVideos
from m2f_client.predict.video import VIDEO_SUFFIXES, Frame, count_frames, frames

FRAMES = 12


@pytest.fixture
def clip(tmp_path, monkeypatch):
    """A video whose frames have a grey each of their own; the working directory is there."""
    monkeypatch.chdir(tmp_path)
    writer = cv2.VideoWriter("clip.avi", cv2.VideoWriter.fourcc(*"MJPG"), 24, (64, 48))
    for index in range(FRAMES):
        writer.write(np.full((48, 64, 3), 20 * index, np.uint8))
    writer.release()
    return "clip.avi"


class Server:
    """Finds the left half; remembers the grey of what it was sent, and can fail at one."""

    def __init__(self):
        self.seen = []
        self.refuses = None

    def answer(self, request):
        image = Image.open(io.BytesIO(request.inputs["image"][0, 0]))
        grey = round(np.asarray(image).mean() / 20)
        if grey == self.refuses:
            raise InvalidRequest("not this one")
        self.seen.append(grey)
        mask = np.zeros((1, image.height, image.width))
        mask[0, :, : image.width // 2] = 1
        return stacked([result_of(mask, scores=[0.5])])


@pytest.fixture
def server():
    server = Server()
    with serving(server.answer) as fake:
        server.url = fake.url
        yield server


def m2f(server, *arguments):
    return CliRunner().invoke(main, ["predict", *arguments, "--url", server.url])


def test_frames(clip):
    got = list(frames(clip, 5))
    assert [frame.name for frame in got] == ["clip.avi#frame=0", "clip.avi#frame=5", "clip.avi#frame=10"]
    assert [round(frame.pixels.mean() / 20) for frame in got] == [0, 5, 10]
    assert got[0].fps == pytest.approx(24 / 5)
    assert count_frames(clip, 5) == 3
    assert count_frames(clip, 1) == FRAMES


def test_a_title_that_is_not_utf8(tmp_path):
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5, width=32, height=32, pix_fmt="yuv420p")
        container.metadata["title"] = "TITLE"
        container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode())
    data = (tmp_path / "clip.mkv").read_bytes()
    assert b"TITLE" in data
    (tmp_path / "clip.mkv").write_bytes(data.replace(b"TITLE", b"\xe4\xff\xff\xff\xff"))
    assert len(list(frames(str(tmp_path / "clip.mkv"), 1))) == 1


def test_a_frame_is_sent_without_loss(clip):
    frame = next(frames(clip, 1))
    sent = np.asarray(Image.open(io.BytesIO(frame.encoded())))
    assert np.array_equal(sent, frame.pixels[:, :, ::-1])


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nclip.avi\n#EXT-X-ENDLIST\n"
CONCAT = b"ffconcat version 1.0\nfile clip.avi\n"


@pytest.mark.usefixtures("clip")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"text"), "not a video that FFmpeg can read: Invalid data"),
        (lambda path: path.write_bytes(b""), "not a video that FFmpeg can read: Invalid data"),
        (lambda path: path.write_bytes(PLAYLIST), "not a video that FFmpeg can read"),
        (lambda path: path.write_bytes(CONCAT), "not a video that FFmpeg can read"),
        (lambda path: cut(write(path, STRIPES), 0.5), "not a video that FFmpeg can read"),  # its index was at the end
        (lambda _: None, "No such file or directory"),
        (os.mkfifo, "not a regular file"),  # and nobody writes to it
        (lambda path: path.mkdir(), "not a regular file"),
        (write_sound, "there is no video in this file"),
        (lambda path: write_sound(path, cover=True), "there is no video in this file"),
    ],
)
def test_what_is_no_video(tmp_path, make, message):
    make(tmp_path / "bad.mp4")
    with pytest.raises(UnreadableImage, match=message):
        list(frames(str(tmp_path / "bad.mp4"), 1))
    assert count_frames(str(tmp_path / "bad.mp4"), 1) == 1  # a failure


# Upright

CORNERS = np.full((48, 80, 3), 90, np.uint8)  # a picture whose corners tell how it lies
CORNERS[:16, :16], CORNERS[:16, -16:], CORNERS[-16:, :16] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
TURNS = {  # how a player shows the file, and what a camera that lay so has stored
    (0, False, False): CORNERS,
    (90, False, False): np.rot90(CORNERS, -1),
    (180, False, False): np.rot90(CORNERS, 2),
    (270, False, False): np.rot90(CORNERS, 1),
    (0, True, False): CORNERS[:, ::-1],
    (0, False, True): CORNERS[::-1],
    (90, True, False): np.rot90(CORNERS[:, ::-1], -1),
    (270, True, False): np.rot90(CORNERS[:, ::-1], 1),
}


@pytest.mark.parametrize("turned", TURNS)
@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_frames_are_upright(tmp_path, name, turned):
    path = write(tmp_path / name, [TURNS[turned]] * 3, turned=turned)
    got = list(frames(str(path), 1))
    assert len(got) == 3
    for frame in got:
        assert frame.pixels.shape == CORNERS.shape
        assert np.abs(frame.pixels[:, :, ::-1].astype(int) - CORNERS).mean() < 8
        assert frame.pixels.flags.c_contiguous


def test_a_phones_video_is_upright_throughout(tmp_path, monkeypatch, server):
    """What the server sees, what the document says, and what is written."""
    monkeypatch.chdir(tmp_path)
    write("phone.mov", [np.rot90(CORNERS.swapaxes(0, 1), -1)] * 2, turned=(90, False, False))
    assert m2f(server, "phone.mov", "--out", "out").exit_code == 0
    (first, _) = json.loads((tmp_path / "out/instances.json").read_text())["images"]
    assert (first["width"], first["height"]) == (48, 80)
    (pixels, _) = annotated(tmp_path / "out/phone_overlay.mp4")
    assert pixels.shape == (80, 48, 3)
    assert np.abs(pixels[-12:, -12:].astype(int) - 90).mean() < 12
    assert pixels[4:12, 36:44].mean((0, 1)).argmax() == 0  # blue, which was at the bottom left before the transpose


# Kinds of videos

STRIPES = [np.tile(np.uint8([[[40 * i + 20] * 3, [90, 200 - 30 * i, 9]]]), (24, 40, 1)) for i in range(5)]


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.mpg", "mpeg2video")])
def test_a_video_that_does_not_state_its_number_of_frames(tmp_path, name, codec):
    path = write(tmp_path / name, STRIPES, codec=codec)
    assert len(list(frames(str(path), 1))) == 5
    assert count_frames(str(path), 2) == (None if name.endswith("mpg") else 3)


@pytest.mark.parametrize("size", [(61, 83), (1, 1), (3, 40), (2, 1)])
def test_the_last_pixel_of_an_odd_side_is_repeated(tmp_path, size):
    picture = cv2.resize(CORNERS, size[::-1])
    path = write(tmp_path / "odd.avi", [picture], codec="png", pixels="rgb24")
    (frame,) = frames(str(path), 1)
    assert np.array_equal(frame.pixels[:, :, ::-1], picture)
    videos = OverlayVideos(tmp_path)
    videos.add(frame, "odd", frame.picture())
    assert videos.finish() == f"{tmp_path}/odd_overlay.mp4"
    (written,) = annotated(tmp_path / "odd_overlay.mp4")
    assert written.shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)


def test_each_frame_is_shown_at_its_own_time(tmp_path, monkeypatch, server):
    monkeypatch.chdir(tmp_path)
    write("a.mp4", STRIPES, times=[0, 40, 80, 1000, 3000])
    assert m2f(server, "a.mp4", "--out", "out").exit_code == 0
    codec, times, length = facts("out/a_overlay.mp4")
    assert (codec, times) == ("h264", [0, 0.04, 0.08, 1, 3])
    assert 3 < length < 4


def test_a_video_that_begins_late_and_stands_still(tmp_path):
    """Times that do not grow would be refused by the encoder."""
    videos = OverlayVideos(tmp_path)
    for time in (7, 7, 6.9, 8):
        frame = Frame("a.mp4", 0, time, 25, CORNERS)
        videos.add(frame, "a", frame.picture())
    assert videos.finish()
    assert facts(tmp_path / "a_overlay.mp4")[1] == pytest.approx([0, 0, 0, 1], abs=1e-3)


def test_a_change_of_resolution(tmp_path):
    videos = OverlayVideos(tmp_path)
    for index, picture in enumerate((CORNERS, CORNERS[:24, :40])):
        frame = Frame("a.mp4", index, index, 1, picture)
        videos.add(frame, "a", frame.picture())
    assert videos.finish()
    assert [pixels.shape for pixels in annotated(tmp_path / "a_overlay.mp4")] == [CORNERS.shape] * 2


def test_a_name_with_a_colon(tmp_path, monkeypatch, server):
    monkeypatch.chdir(tmp_path)
    write("file:a.mp4", STRIPES)  # makes `a.mp4`
    (tmp_path / "a.mp4").rename("cam:1.mp4")
    assert m2f(server, "cam:1.mp4", "--out", "out").exit_code == 0
    assert len(annotated("out/cam:1_overlay.mp4")) == 5


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_an_empty_file_of_each_suffix_is_refused(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(b"")
    with pytest.raises(UnreadableImage, match=r"not a video that FFmpeg can read|no frame of the video can be decoded"):
        list(frames(str(tmp_path / f"a{suffix}"), 1))


def test_gaps_are_no_damage(tmp_path):
    """AVI states the number of frames with those that it leaves out."""
    path = write(tmp_path / "a.avi", STRIPES, codec="mpeg4", times=[0, 40, 80, 1000, 3000])
    assert [float(frame.time) for frame in frames(str(path), 1)] == [0, 0.04, 0.08, 1, 3]
    assert count_frames(str(path), 1) == 5


# Damage

NOISE = np.random.default_rng(0).integers(0, 256, (60, 48, 64, 3), dtype=np.uint8)


def read(path):
    """The numbers of the frames of a video, and what is said behind the last one."""
    indices = []
    try:
        for frame in frames(str(path), 1):
            indices.append(frame.index)
    except UnreadableImage as error:
        return indices, str(error)
    return indices, None


def cut_video(path):
    """60 frames in a file that is cut."""
    codec = {".avi": "mpeg4", ".webm": "libvpx"}.get(path.suffix, "libx264")
    faststart = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    return cut(write(path, NOISE, codec=codec, **faststart), 0.6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.mp4", r"the video is damaged: (\d\d) of 60 frames could be decoded \(Invalid data found .*\)"),
        ("a.avi", r"the video is damaged: (\d\d) frames could be decoded, 1\.\d s of 2\.4 s"),
        ("a.mkv", r"the video is damaged: (\d\d) frames could be decoded, 1\.\d s of 2\.4 s"),
        ("a.webm", r"the video is damaged: (\d\d) frames could be decoded, 1\.\d s of 2\.4 s"),
    ],
)
def test_a_cut_video_gives_its_frames_then_says_so(tmp_path, name, message):
    indices, said = read(cut_video(tmp_path / name))
    assert re.fullmatch(message, said), said
    assert indices == list(range(int(re.fullmatch(message, said)[1])))
    assert 25 < len(indices) < 50


def test_a_video_with_a_broken_part_goes_on_behind_it(tmp_path):
    path = write(tmp_path / "a.mp4", NOISE, movflags="faststart", g="10")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = b"\xff" * 2000
    path.write_bytes(data)
    indices, said = read(path)
    assert re.fullmatch(r"the video is damaged: 5\d of 60 frames could be decoded \(Invalid data found .*\)", said)
    assert 50 <= len(indices) < 60


def test_a_damaged_video_is_done_as_far_as_it_goes(tmp_path, monkeypatch, server):
    monkeypatch.chdir(tmp_path)
    cut_video(tmp_path / "a.mp4")
    ran = m2f(server, "a.mp4", "--out", "out")
    assert ran.exit_code == 1
    said = re.search(
        r"^m2f: a.mp4: the video is damaged: (\d+) of 60 frames could be decoded", ran.stderr, re.MULTILINE
    )
    assert "wrote out/a_overlay.mp4" in ran.stdout
    assert len(annotated("out/a_overlay.mp4")) == int(said[1])
    assert len(json.loads((tmp_path / "out/instances.json").read_text())["images"]) == int(said[1])
    server.seen.clear()
    assert m2f(server, "a.mp4", "--out", "out").exit_code == 1
    assert server.seen == []  # its frames are done


def test_frames_that_are_too_large(tmp_path):
    path = write(tmp_path / "a.mkv", [CORNERS], codec="ffv1")
    width, height = b"\xb0\x81\x50", b"\xba\x81\x30"  # each: the element, one byte, its value
    path.write_bytes(path.read_bytes().replace(width + height, b"\xb0\x82\x4e\x20\xba\x82\x27\x10"))
    with pytest.raises(UnreadableImage, match="too large: 20000 x 10000; allowed are 67108864 pixels"):
        list(frames(str(path), 1))


@pytest.mark.parametrize("count", [60, pytest.param(5000, marks=[pytest.mark.chaos, pytest.mark.timeout(1800)])])
def test_a_damaged_video_is_read_or_refused(tmp_path, count):
    codecs = {".mp4": "libx264", ".mkv": "libx264", ".avi": "mpeg4", ".webm": "libvpx", ".mpg": "mpeg2video"}
    whole = {suffix: write(tmp_path / f"a{suffix}", NOISE[:9], codec=codec) for suffix, codec in codecs.items()}
    files = {suffix: path.read_bytes() for suffix, path in whole.items()}
    rng, refused = random.Random(count), 0
    for _ in range(count):
        suffix = rng.choice(list(files))
        path = tmp_path / f"damaged{suffix}"
        path.write_bytes(mutated(rng, files[suffix], list(files.values())))
        count_frames(str(path), 1)
        refused += read(path)[1] is not None
    assert 0.2 * count < refused < 0.9 * count


# What is installed


def test_without_pyav_a_video_says_what_to_install(tmp_path, monkeypatch, server):
    monkeypatch.chdir(tmp_path)
    write("a.mp4", STRIPES)
    Image.new("RGB", (9, 9)).save("a.png")
    monkeypatch.setitem(sys.modules, "av", None)
    ran = m2f(server, "a.mp4", "a.png", "--out", "out")
    assert (ran.exit_code, ran.stderr.splitlines()[0]) == (1, "m2f: a.mp4: videos need PyAV: pip install 'm2f[video]'")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a-2_overlay.png",
        "instances.json",
        "instances.jsonl",
    ]


def test_without_an_encoder_for_h264_it_is_mpeg4_and_said(tmp_path, monkeypatch, server):
    monkeypatch.chdir(tmp_path)
    write("a.mp4", STRIPES)
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264", "libopenh264"})
    ran = m2f(server, "a.mp4", "--out", "out")
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert "wrote out/a_overlay.mp4 (MPEG-4: this PyAV has no encoder for H.264)" in ran.stdout
    assert facts("out/a_overlay.mp4")[0] == "mpeg4"


@pytest.mark.usefixtures("clip")
@pytest.mark.parametrize("name", ["clip_overlay.mp4", ".clip_overlay.part.mp4"])
def test_an_annotated_video_that_cannot_be_written(tmp_path, server, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    ran = m2f(server, "clip.avi", "--out", "out")
    assert ran.exit_code == 1
    assert re.search("^m2f: (clip.avi: )?cannot write out/clip_overlay.mp4: Is a directory", ran.stderr, re.MULTILINE)
    assert "Traceback" not in ran.stderr
    assert len(server.seen) == FRAMES  # the frames are done all the same


def annotated(path):
    """Frames of an annotated video, BGR."""
    return [frame.pixels for frame in frames(str(path), 1)]


def check(pictures, greys):
    """The left half is coloured, the right half has the frame's grey."""
    assert len(pictures) == len(greys)
    for pixels, grey in zip(pictures, greys, strict=True):
        assert pixels.shape == (48, 64, 3)
        assert abs(pixels[30:, 50:].mean() - 20 * grey) < 12
        assert np.ptp(pixels[30:, 8:24].mean((0, 1))) > 15


@pytest.mark.usefixtures("clip")
def test_an_annotated_video_comes_out(tmp_path, server):
    Image.new("RGB", (9, 9)).save("a.png")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    ran = m2f(server, "clip.avi", "bad.mp4", "a.png", "--every", "2", "--out", "out")
    assert ran.exit_code == 1
    assert (
        ran.stderr.splitlines()[0]
        == "m2f: bad.mp4: not a video that FFmpeg can read: Invalid data found when processing input"
    )
    assert "wrote out/clip_overlay.mp4" in ran.stdout
    document = json.loads((tmp_path / "out/instances.json").read_text())
    assert [image["file_name"] for image in document["images"]] == [
        *(f"clip.avi#frame={index}" for index in range(0, FRAMES, 2)), "a.png"
    ]  # fmt: skip
    check(annotated(tmp_path / "out/clip_overlay.mp4"), range(0, FRAMES, 2))
    assert count_frames(str(tmp_path / "out/clip_overlay.mp4"), 1) == FRAMES // 2
    assert not list((tmp_path / "out").glob("*.part*"))


@pytest.mark.usefixtures("clip")
def test_a_resumed_video_is_whole(tmp_path, server):
    """Frames done before are drawn from the journal, not asked for again."""
    server.refuses = 7
    assert m2f(server, "clip.avi", "--out", "out").exit_code == 1
    assert len(annotated(tmp_path / "out/clip_overlay.mp4")) == FRAMES  # the one that failed is in it, unmarked
    server.refuses, server.seen[:] = None, []
    assert m2f(server, "clip.avi", "--out", "out").exit_code == 0
    assert server.seen == [7]
    check(annotated(tmp_path / "out/clip_overlay.mp4"), range(FRAMES))
    assert len(json.loads((tmp_path / "out/instances.json").read_text())["images"]) == FRAMES


@pytest.mark.usefixtures("clip")
@pytest.mark.parametrize("overlay", ["../../x_overlay.mp4", "/x_overlay.mp4", "a/x_overlay.mp4", 5, None])
def test_a_journal_that_leads_out_of_its_folder(tmp_path, server, overlay):
    """An output folder may come from somebody else."""
    server.refuses = 7
    folder = tmp_path / "deep" / "out"
    assert m2f(server, "clip.avi", "--out", str(folder)).exit_code == 1
    lines = [json.loads(line) for line in (folder / "instances.jsonl").read_text().splitlines()]
    lines[0]["overlay"] = f"{tmp_path}{overlay}" if overlay == "/x_overlay.mp4" else overlay
    (folder / "instances.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ran = m2f(server, "clip.avi", "--out", str(folder))
    assert (ran.exit_code, "line 1 was not written by m2f predict" in ran.stderr) == (1, True)
    assert not list(tmp_path.rglob("x_overlay*"))


def test_a_video_in_a_folder_resumes(tmp_path, clip, server):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / clip).rename(tmp_path / "a" / "b" / clip)
    server.refuses = 7
    assert m2f(server, f"a/b/{clip}", "--out", "out").exit_code == 1
    server.refuses = None
    assert m2f(server, f"a/b/{clip}", "--out", "out").exit_code == 0
    assert len(annotated(tmp_path / "out/clip_overlay.mp4")) == FRAMES


@pytest.mark.usefixtures("clip")
def test_without_out_frames_are_not_drawn_again(server):
    assert m2f(server, "clip.avi", "--jsonl", "run.jsonl").exit_code == 0
    assert sorted(server.seen) == list(range(FRAMES))
    server.seen.clear()
    assert m2f(server, "clip.avi", "--jsonl", "run.jsonl").exit_code == 0
    assert server.seen == []
