"""Videos: their frames as images, and the annotated videos."""

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
"""Separates file and frame number, counted from 0, in the name of an image: `clip.mp4#frame=12`."""

_DEFAULT_FPS = 25.0  # for files that state no frame rate
Pixels = npt.NDArray[np.uint8]

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # silent: the error is reported once, by m2f


@dataclass(frozen=True)
class Frame:
    """One frame of a video.

    Attributes:
        video: name of the file.
        index: number of the frame, from 0.
        fps: frame rate of the annotated video.
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
        """Return the frame as PNG, without loss; compression level 1 is fast."""
        return bytes(cv2.imencode(".png", self.pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1])

    def picture(self) -> Image.Image:
        """Return the frame as an RGB image."""
        return Image.fromarray(cv2.cvtColor(self.pixels, cv2.COLOR_BGR2RGB))


def is_video(name: str) -> bool:
    """Say whether a name is a video file's."""
    return name.lower().endswith(VIDEO_SUFFIXES) and "://" not in name


def source_of(name: str) -> str:
    """Return the file of an image: for a frame, the video."""
    return name.rpartition(FRAME)[0] or name


def count_frames(name: str, every: int) -> int | None:
    """Return how many frames `frames` gives; None if the file does not state its length."""
    capture = cv2.VideoCapture(name)
    count = (
        int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 1
    )  # an unreadable file counts as one failed image
    capture.release()
    return -(-count // every) if count > 0 else None


def frames(name: str, every: int) -> Iterator[Frame]:
    """Decode each `every`-th frame of a video, from the first on.

    Raises:
        UnreadableImage: OpenCV cannot read the file, or finds no frame in it.
    """
    if not Path(name).is_file():
        raise UnreadableImage("No such file or directory")
    capture = cv2.VideoCapture(name)
    try:
        fps = capture.get(cv2.CAP_PROP_FPS) or _DEFAULT_FPS
        index = 0
        while capture.grab():  # skips without decoding
            if index % every == 0:
                decoded, pixels = capture.retrieve()
                if decoded:
                    yield Frame(name, index, fps / every, pixels.astype(np.uint8, copy=False))
            index += 1
        if index == 0:
            raise UnreadableImage("not a video that OpenCV can read")
    finally:
        capture.release()


class OverlayVideos:
    """Writes annotated videos, one after the other, from frames in their order.

    A video gets its name, `STEM_overlay.mp4`, only once it is complete. MPEG-4 needs even sides: of an odd width or
    height the last pixel is cut off.

    Args:
        out: folder for the videos.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._video: str | None = None  # the file whose frames are being added
        self._target: Path | None = None  # None: it cannot be written, and its frames are dropped
        self._writer: Any = None

    def takes(self, frame: Frame) -> bool:
        """Say whether a frame belongs to the video that is being written."""
        return self._video == frame.video

    def add(self, frame: Frame, stem: str, picture: Image.Image) -> None:
        """Append a frame to its video. Further frames of a video that cannot be written are dropped.

        Raises:
            M2FError: the video cannot be written. Raised once for each video.
        """
        if not self.takes(frame):
            self._open(frame, self._out / f"{stem}_overlay.mp4", picture.size)
        if self._target is not None:
            self._writer.write(cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2BGR))

    def finish(self, *, whole: bool = True) -> Path | None:
        """Close the video that is being written, delete it unless `whole`, and return the file, if there is one."""
        target, self._target, self._video = self._target, None, None
        if target is None:
            return None
        self._writer.release()
        if not whole:
            _partial(target).unlink(missing_ok=True)
            return None
        return _partial(target).replace(target)

    def _open(self, frame: Frame, target: Path, size: tuple[int, int]) -> None:
        self._video = frame.video
        self._writer = cv2.VideoWriter(str(_partial(target)), cv2.VideoWriter.fourcc(*"mp4v"), frame.fps, size)
        if not self._writer.isOpened():
            _partial(target).unlink(missing_ok=True)
            raise M2FError(f"cannot write {target}: OpenCV cannot make a video of {size[0]}x{size[1]} there")
        self._target = target


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.stem}.part.mp4")
