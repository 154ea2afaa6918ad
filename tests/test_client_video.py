"""Videos in, annotated videos out."""

import io
import json

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from fake_server import serving
from PIL import Image

from m2f_cli.main import main
from m2f_client import InvalidRequest, UnreadableImage
from m2f_client.fake import result_of, stacked
from m2f_client.predict.video import count_frames, frames

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


def test_a_frame_is_sent_without_loss(clip):
    frame = next(frames(clip, 1))
    sent = np.asarray(Image.open(io.BytesIO(frame.encoded())))
    assert np.array_equal(sent, frame.pixels[:, :, ::-1])


@pytest.mark.parametrize(("content", "message"), [(b"text", "OpenCV can"), (b"", "OpenCV can"), (None, "No such")])
def test_what_is_no_video(tmp_path, content, message):
    if content is not None:
        (tmp_path / "bad.mp4").write_bytes(content)
    with pytest.raises(UnreadableImage, match=message):
        list(frames(str(tmp_path / "bad.mp4"), 1))


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
    assert ran.stderr.splitlines()[0] == "m2f: bad.mp4: not a video that OpenCV can read"
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
