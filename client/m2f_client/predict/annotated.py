"""The annotated videos: H.264 in MP4, which browsers and players show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from m2f.errors import M2FError
from m2f_client.predict.video import Frame, pyav, reason

_ENCODERS: dict[str, dict[str, str]] = {  # by preference: name and options
    "libx264": {"crf": "20", "preset": "veryfast"},
    "libopenh264": {},
    "mpeg4": {"qmin": "2", "qmax": "5"},
}
_TICKS = 60_000  # a second; MPEG-4 allows at most 65,535
_BT709 = 1  # FFmpeg's number for primaries, transfer and matrix: what players assume


class OverlayVideos:
    """Writes annotated videos, one after the other, from frames in their order.

    A video gets its name, `STEM_overlay.mp4`, only once it is complete. Each frame is shown at its own time, so that a
    variable frame rate is kept. The codecs need even sides: of an odd width or height the last pixel is repeated.

    Args:
        out: folder for the videos.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._video: str | None = None  # the file whose frames are being added
        self._encoder: _Encoder | None = None  # None: it cannot be written, and its frames are dropped

    def takes(self, frame: Frame) -> bool:
        """Say whether a frame belongs to the video that is being written."""
        return self._video == frame.video

    def add(self, frame: Frame, stem: str, picture: Image.Image) -> None:
        """Append a frame to its video. Further frames of a video that cannot be written are dropped.

        Raises:
            M2FError: the video cannot be written. Raised once for each video.
        """
        if not self.takes(frame):
            self._video = frame.video
            target = self._out / f"{stem}_overlay.mp4"
            with self._reported(target):
                self._encoder = _Encoder(target, frame, picture.size)
        if self._encoder is not None:
            with self._reported(self._encoder.target):
                self._encoder.add(picture, frame.time)

    def finish(self, *, whole: bool = True) -> str | None:
        """Close the video that is being written, and delete it unless `whole`.

        Returns:
            What was written, for the user; None if nothing was.

        Raises:
            M2FError: the video cannot be written.
        """
        self._video = None
        encoder = self._encoder
        if encoder is None:
            return None
        with self._reported(encoder.target):
            encoder.close()
            if whole:
                encoder.part.replace(encoder.target)
        encoder.part.unlink(missing_ok=True)
        self._encoder = None
        return f"{encoder.target}{encoder.remark}" if whole else None

    @contextmanager
    def _reported(self, target: Path) -> Iterator[None]:
        """Give the video up at an error, and turn the error into an M2FError."""
        try:
            yield
        except (OSError, ValueError, pyav().FFmpegError) as error:
            self._encoder = None
            with suppress(OSError):
                _part(target).unlink()
            raise M2FError(f"cannot write {target}: {reason(error)}") from error


class _Encoder:
    """One video file in the making."""

    def __init__(self, target: Path, first: Frame, size: tuple[int, int]) -> None:
        av = pyav()
        self.target, self.part = target, _part(target)
        self._size, self._begin, self._last = size, first.time, -1
        name = next(name for name in _ENCODERS if name in av.codecs_available)
        self.remark = " (MPEG-4: this PyAV has no encoder for H.264)" if name == "mpeg4" else ""
        self._container = av.open(f"file:{self.part}", "w", format="mp4", options={"movflags": "faststart"})
        self._stream = self._container.add_stream(name, rate=first.fps, options=_ENCODERS[name])
        self._stream.width, self._stream.height = (side + side % 2 for side in size)
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.time_base = Fraction(1, _TICKS)
        context.max_b_frames = 0  # with them, the file states a wrong length where frames lie far apart
        context.colorspace = context.color_primaries = context.color_trc = _BT709

    def add(self, picture: Image.Image, time: Fraction) -> None:
        """Append a picture; one of another size, as after a change of resolution, is scaled."""
        if picture.size != self._size:
            picture = picture.resize(self._size)
        width, height = self._size
        pixels = cv2.copyMakeBorder(np.asarray(picture), 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        frame = pyav().VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="yuv420p", dst_colorspace="itu709")
        self._last = max(self._last + 1, round((time - self._begin) * _TICKS))
        frame.pts, frame.time_base = self._last, Fraction(1, _TICKS)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what is held back, and the end of the file."""
        try:
            self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()


def _part(target: Path) -> Path:
    return target.with_name(f".{target.stem}.part.mp4")
