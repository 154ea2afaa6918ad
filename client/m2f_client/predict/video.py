"""Videos: their frames, upright.

PyAV decodes them. OpenCV would not tell a damaged end from the end of a video, and it cannot write H.264.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from m2f.limits import MAX_PIXELS
from m2f_client.client_errors import UnreadableImage

VIDEO_SUFFIXES = (
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".webm", ".wmv",
)  # fmt: skip
FRAME = "#frame="
"""Separates file and frame number, counted from 0, in the name of an image: `clip.mp4#frame=12`."""

_DEFAULT_FPS = Fraction(25)  # for files that state no frame rate
_DEMUXERS = "mov,matroska,avi,mpeg,mpegvideo,mpegts,m4v,asf,flv,ogg"  # none of playlists, which name other files
_LATE = 0.5  # seconds from the last frame to the stated end of a video that is whole
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Frame:
    """One frame of a video.

    Attributes:
        video: name of the file.
        index: number of the frame, from 0.
        time: seconds at which the frame is shown.
        fps: mean rate of the frames that are taken.
        pixels: BGR uint8 [H, W, 3], upright.
    """

    video: str
    index: int
    time: Fraction
    fps: Fraction
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
    source, _, number = name.rpartition(FRAME)
    return source if is_video(source) and number.isdecimal() else name


def pyav() -> Any:
    """Return the module `av`.

    Raises:
        UnreadableImage: PyAV is not installed.
    """
    try:
        import av  # noqa: PLC0415 (an extra)
    except ImportError:
        raise UnreadableImage("videos need PyAV: pip install 'm2f[video]'") from None
    return av


def reason(error: Exception) -> str:
    """Return why FFmpeg failed, without the name of its function."""
    return getattr(error, "strerror", None) or str(error)


def count_frames(name: str, every: int) -> int | None:
    """Return how many frames `frames` gives; None if the file does not state its length."""
    try:
        with _opened(name) as (container, stream):
            if container.format.name.startswith(("mov", "avi")):
                count = len(stream.index_entries)
            else:
                count = round(_stated_seconds(container, stream) * (stream.average_rate or 0))
    except UnreadableImage:
        return 1  # an unreadable file counts as one failed image
    return -(-count // every) if count else None


def frames(name: str, every: int) -> Iterator[Frame]:
    """Decode each `every`-th frame of a video, from the first on.

    Raises:
        UnreadableImage: the file is no video, or PyAV is not installed. Behind the last frame: the video is damaged;
            the message says how many frames could be decoded.
    """
    with _opened(name) as (container, stream):
        fps = stream.average_rate or _DEFAULT_FPS
        decoding = _Decoding(container, stream)
        for index, decoded in enumerate(decoding.frames()):
            if index % every == 0:
                time = index / fps if decoded.pts is None else decoded.pts * decoded.time_base
                yield Frame(name, index, time, fps / every, _upright(decoded))
        decoding.check()


@contextmanager
def _opened(name: str) -> Iterator[tuple[Any, Any]]:
    """Open a file; yield its container and its video stream."""
    path = Path(name)
    if not path.is_file():
        raise UnreadableImage("not a regular file" if path.exists() else "No such file or directory")
    av = pyav()
    # before PyAV 19, a title that is not UTF-8 is an error unless told otherwise
    lenient = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}
    try:  # `file:`, because a name may have a colon
        container = av.open(f"file:{name}", options={"format_whitelist": _DEMUXERS}, **lenient)
    except av.FFmpegError as error:
        raise UnreadableImage(f"not a video that FFmpeg can read: {reason(error)}") from error
    with container:
        cover = av.stream.Disposition.attached_pic  # of a song
        streams = [s for s in container.streams.video if not s.disposition & cover]
        if not streams:
            raise UnreadableImage("there is no video in this file")
        if streams[0].codec_context is None:
            raise UnreadableImage("this PyAV has no decoder for the video in this file")
        width, height = streams[0].width, streams[0].height
        if width * height > MAX_PIXELS:
            raise UnreadableImage(f"the frames are too large: {width} x {height}; allowed are {MAX_PIXELS} pixels")
        yield container, streams[0]


def _listed_frames(container: Any, stream: Any) -> int:
    """Return how many frames an MP4, or a file of its kin, lists; 0 for other files."""
    return len(stream.index_entries) if container.format.name.startswith("mov") else 0


def _stated_seconds(container: Any, stream: Any) -> float:
    """Return the length of the video that the file states; 0 if it states none, or lists its frames instead."""
    if container.format.name == "avi" and stream.average_rate:
        return float(stream.frames / stream.average_rate)  # gaps count as frames
    try:  # Matroska and WebM: 00:00:02.500000000
        hours, minutes, seconds = map(float, stream.metadata.get("DURATION", "").split(":"))
    except ValueError:
        return 0.0
    return 3600 * hours + 60 * minutes + seconds


class _Decoding:
    """One pass over the frames of a video."""

    def __init__(self, container: Any, stream: Any) -> None:
        self._container, self._stream = container, stream
        self._packets, self._decoded, self._end = 0, 0, 0.0
        self._fault: Exception | None = None  # the first one

    def frames(self) -> Iterator[Any]:
        """Decode all frames. Parts that cannot be decoded are passed over."""
        for packet in self._demuxed():
            if packet is not None and packet.size:
                self._packets += 1
                ended = (packet.pts or 0) + (packet.duration or 0)
                self._end = max(self._end, float(ended * packet.time_base))
            try:
                decoded = self._stream.decode(packet)
            except pyav().FFmpegError as error:
                self._fault = self._fault or error
                continue
            for frame in decoded:
                self._decoded += 1
                yield frame

    def check(self) -> None:
        """Raise UnreadableImage if the video is damaged."""
        listed = _listed_frames(self._container, self._stream)
        seconds = _stated_seconds(self._container, self._stream)
        ends_early = self._end + _LATE < seconds
        if not self._decoded:
            raise UnreadableImage(f"no frame of the video can be decoded{self._why()}")
        if self._fault or self._packets < listed or ends_early:
            count = f"{self._decoded} of {listed}" if self._decoded < listed else f"{self._decoded}"
            lengths = f", {self._end:.1f} s of {seconds:.1f} s" if ends_early else ""
            raise UnreadableImage(f"the video is damaged: {count} frames could be decoded{lengths}{self._why()}")

    def _demuxed(self) -> Iterator[Any]:
        """Yield the compressed frames; None, as the last one, makes the decoder hand out what it still holds."""
        try:
            yield from self._container.demux(self._stream)
        except pyav().FFmpegError as error:
            self._fault = self._fault or error
            yield None

    def _why(self) -> str:
        return f" ({reason(self._fault)})" if self._fault else ""


def _upright(frame: Any) -> Pixels:
    """Return a frame as BGR pixels, turned and mirrored as the file's display matrix says."""
    pixels: Pixels = frame.to_ndarray(format="bgr24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()  # a pixel at (x, y) is shown at (a x + c y, b x + d y)
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
