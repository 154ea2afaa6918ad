"""What the core says of its work: phases and formats, to whoever listens."""

import threading

import numpy as np
import pytest
from logits import blobs
from pictures import encode, photo

from m2f.errors import InputError
from m2f.logits import ImageLogits
from m2f.postprocess import postprocess
from m2f.preprocess import Preprocessing
from m2f.record import PHASES, image_decoded, phase, recorded
from m2f.settings import Settings

PREPROCESSING = Preprocessing(scale=(64, 64))


def test_the_core_reports_every_phase_and_format():
    files = [encode(photo(), kind) for kind in ("jpg", "png", "webp", "jpg")]
    with recorded() as record:
        PREPROCESSING(files)
        cls_logits, mask_logits = blobs(np.random.default_rng(0))
        postprocess(ImageLogits(cls_logits, mask_logits, img_shape=(96, 128), ori_shape=(96, 128)), Settings())
    assert record.images == {"JPEG": 2, "PNG": 1, "WEBP": 1}
    assert set(record.seconds) == set(PHASES) - {"wait"}  # which is the server's
    assert all(0 < seconds < 10 for seconds in record.seconds.values())


def test_a_phase_that_fails_counts_and_its_image_does_not():
    with recorded() as record, pytest.raises(InputError):
        PREPROCESSING([encode(photo(), "jpg")[:-200]])
    assert record.images == {}
    assert list(record.seconds) == ["decode"]


def test_phases_add_up_and_end_with_their_block():
    with recorded() as record:
        for _ in range(2):
            with phase("decode"):
                pass
        first = dict(record.seconds)
    with phase("decode"):  # nobody listens
        image_decoded("PNG")
    assert record.seconds == first
    assert record.images == {}


def test_another_threads_work_is_not_ours():
    with recorded() as record:
        thread = threading.Thread(target=image_decoded, args=("PNG",))
        thread.start()
        thread.join()
    assert record.images == {}
