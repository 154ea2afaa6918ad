"""Videos of every kind, made with PyAV."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FPS = 25


def write(path, pictures, *, codec="libx264", pixels="yuv420p", turned=None, times=None, **options):
    """Write pictures, uint8 [H, W, 3] RGB, as a video.

    Args:
        turned: how a player is to show it: degrees, whether mirrored left to right, whether top to bottom.
        times: milliseconds of each picture; None: 25 a second.
        options: of the container, such as movflags="faststart": a file that is cut can then be opened.
    """
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=FPS)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        unit = Fraction(1, 1000) if times else Fraction(1, FPS)
        stream.codec_context.time_base = unit
        if turned is not None:
            degrees, across, down = turned
            stream.set_display_rotation(degrees, hflip=across, vflip=down)
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            frame.pts, frame.time_base = times[index] if times else index, unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return Path(path)


def write_sound(path, *, cover=False):
    """Write a second of silence, with a cover or without."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44_100)
        picture = container.add_stream("mjpeg", rate=1) if cover else None
        if picture is not None:
            picture.width, picture.height, picture.pix_fmt = 16, 16, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
            container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24")))
            container.mux(picture.encode(None))
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 44_100), np.float32), "fltp", "mono")
        samples.rate = 44_100
        container.mux(stream.encode(samples))
        container.mux(stream.encode(None))
    return Path(path)


def cut(path, share):
    """Keep the first part of a file."""
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: int(share * len(data))])
    return Path(path)


def facts(path):
    """The codec of a video, the times of its frames in seconds, its length in seconds."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        length = float(stream.duration * stream.time_base)
        times = [float(frame.pts * frame.time_base) for frame in container.decode(stream)]
        return stream.codec_context.name, times, length
