"""A stand-in for a model: it finds the bright blobs of a picture, each an instance. It counts what it is asked."""

import asyncio
import threading

import cv2
import numpy as np

from m2f.image import decode_image
from m2f_client.fake import FakeTransport, result_of, stacked


def blobs(pixels):
    """Return the masks of the bright blobs, bool [K, H, W]."""
    count, numbers = cv2.connectedComponents((pixels.min(-1) > 127).astype(np.uint8))
    return np.stack([numbers == i for i in range(1, count)]) if count > 1 else np.zeros((0, *numbers.shape), bool)


def found(pixels):
    """Return what the model answers: every blob of class 0."""
    masks = blobs(pixels)
    return result_of(masks, labels=[0] * len(masks))


def pixels_of(request):
    """Return the picture of a request."""
    (data,) = request.inputs["image"].reshape(-1)
    return decode_image(data, max_pixels=1 << 28)


def answer(request):
    """Return the answer to a request, as `FakeTransport` and `fake_server` take it."""
    pixels = pixels_of(request)
    return stacked([found(pixels)]) | {"semantic": np.zeros((1, *pixels.shape[:2]), np.int32)}


def blob_transport(before=lambda _: None):
    """Return a transport that answers with the blobs; `before` may raise."""

    def handle(request):
        before(request)
        return answer(request)

    return FakeTransport(handle)


class Crowd(FakeTransport):
    """Answers only once `size` requests are in flight, or all that are left; counts the most in flight."""

    def __init__(self, size, total):
        super().__init__(answer)
        self.size, self.total, self.most, self._now, self._begun = size, total, 0, 0, 0
        self._changed = threading.Condition()

    async def infer(self, request):
        if request.outputs == ("class_names",):
            return await super().infer(request)
        with self._changed:
            self._begun += 1
            self._now += 1
            self.most = max(self.most, self._now)
            self._changed.notify_all()
        await self._gathered()
        try:
            return await super().infer(request)
        finally:
            with self._changed:
                self._now -= 1

    async def _gathered(self):
        with self._changed:
            self._changed.wait_for(lambda: self.most >= self.size or self._begun == self.total)


class AsyncCrowd(Crowd):
    """The same for an event loop."""

    async def _gathered(self):
        while self.most < self.size and self._begun < self.total:
            await asyncio.sleep(0)
        await asyncio.sleep(0)


def picture_of(height, width, *boxes):
    """Return a dark picture with bright boxes x1 y1 x2 y2."""
    pixels = np.full((height, width, 3), 10, np.uint8)
    for x1, y1, x2, y2 in boxes:
        pixels[y1:y2, x1:x2] = 200
    return pixels
