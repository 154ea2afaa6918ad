"""Videos: their frames as images, and the annotated video that comes of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from m2f.errors import M2FError
from m2f_client.client_errors import UnreadableImage

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
FRAME = "#frame="
"""Stands between a video's name and the number of a frame, from 0 on, in the name of an image."""

_DEFAULT_FPS = 25.0  # where a file does not say
Pixels = npt.NDArray[np.uint8]

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # silent: what went wrong is said once, by us


@dataclass(frozen=True)
class Frame:
    """One frame of a video.

    Attributes:
        video: name of the file.
        index: number of the frame, from 0.
        fps: frames a second of the annotated video.
        pixels: BGR uint8 [H, W, 3].
    """

    video: str
    index: int
    fps: float
    pixels: Pixels

    @property
    def name(self) -> str:
        """Name of the image, such as `clip.mp4#frame=12`."""
        return f"{self.video}{FRAME}{self.index}"

    def encoded(self) -> bytes:
        """Return the frame as PNG: nothing is lost, and level 1 is quick."""
        return bytes(cv2.imencode(".png", self.pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1])

    def picture(self) -> Image.Image:
        """Return the frame as an RGB image."""
        return Image.fromarray(cv2.cvtColor(self.pixels, cv2.COLOR_BGR2RGB))


def is_video(name: str) -> bool:
    """Say whether a name is that of a video file."""
    return name.lower().endswith(VIDEO_SUFFIXES) and "://" not in name


def source_of(name: str) -> str:
    """Return the file that an image's name stands for: the video, where it is a frame."""
    return name.rpartition(FRAME)[0] or name


def count_frames(name: str, every: int) -> int | None:
    """Return how many frames `frames` gives, as far as the file says; None: it does not."""
    capture = cv2.VideoCapture(name)
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 1  # one that cannot be read
    capture.release()
    return -(-count // every) if count > 0 else None


def frames(name: str, every: int) -> Iterator[Frame]:
    """Decode each `every`-th frame of a video, from the first, one after the other.

    Raises:
        UnreadableImage: OpenCV cannot read the file, or finds no frame in it.
    """
    if not Path(name).is_file():
        raise UnreadableImage("No such file or directory")
    capture = cv2.VideoCapture(name)
    try:
        fps = capture.get(cv2.CAP_PROP_FPS) or _DEFAULT_FPS
        index = 0
        while capture.grab():  # decoding is left out for the frames between
            if index % every == 0:
                decoded, pixels = capture.retrieve()
                if decoded:
                    yield Frame(name, index, fps / every, pixels.astype(np.uint8, copy=False))
            index += 1
        if index == 0:
            raise UnreadableImage("not a video that OpenCV can read")
    finally:
        capture.release()


class VideoWriter:
    """An annotated video that has its name only when it is whole. Of an odd width or height a pixel is cut off: MPEG-4.

    Args:
        target: file to make, `.mp4`.
        fps: frames a second.
        size: width and height.

    Raises:
        M2FError: the file cannot be written.
    """

    def __init__(self, target: Path, *, fps: float, size: tuple[int, int]) -> None:
        self.target = target
        self._size = size
        self._partial = target.with_name(f".{target.stem}.part.mp4")
        self._writer: Any = cv2.VideoWriter(str(self._partial), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
        if not self._writer.isOpened():
            self._partial.unlink(missing_ok=True)
            raise M2FError(f"cannot write {target}: OpenCV cannot make a video of {size[0]}x{size[1]} there")

    def add(self, picture: Image.Image) -> None:
        """Append a frame."""
        self._writer.write(cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2BGR))

    def close(self, *, whole: bool) -> None:
        """End the file, and keep it if it is whole."""
        self._writer.release()
        if whole:
            self._partial.replace(self.target)
        else:
            self._partial.unlink(missing_ok=True)


class OverlayVideos:
    """Annotated videos, one after the other, as frames come in their order.

    Args:
        out: folder for them.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._video: str | None = None
        self._writer: VideoWriter | None = None

    def takes(self, frame: Frame) -> bool:
        """Say whether a frame belongs to the video that is open."""
        return self._video == frame.video

    def add(self, frame: Frame, stem: str, picture: Image.Image) -> None:
        """Append a frame to the video that it belongs to, `STEM_overlay.mp4`.

        Raises:
            M2FError: the video cannot be written. It is raised once a video: its further frames are dropped.
        """
        if not self.takes(frame):
            self._video = frame.video
            self._writer = VideoWriter(self._out / f"{stem}_overlay.mp4", fps=frame.fps, size=picture.size)
        if self._writer is not None:
            self._writer.add(picture)

    def finish(self, *, whole: bool = True) -> Path | None:
        """End the video that is open, and keep it if it is whole; return the file, if there is one."""
        writer, self._writer, self._video = self._writer, None, None
        if writer is None:
            return None
        writer.close(whole=whole)
        return writer.target if whole else None
