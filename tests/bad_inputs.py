"""Requests that a server must survive, by name; files are in `bad_images`, what is no request in `bad_bodies`."""

from dataclasses import dataclass

import numpy as np
from kserve import image_input
from pictures import encode, photo
from wire import Post, message

from m2f.contract import PUBLIC_MODEL, PUBLIC_TENSOR_MODEL

GOOD = encode(photo())


@dataclass(frozen=True)
class Request:
    """Tensors and parameters, as any client sends them.

    Attributes:
        reason: regular expression of the error; None: it is answered.
    """

    model: str
    inputs: dict
    reason: str | None
    outputs: tuple = ("num_instances",)
    parameters: dict = None

    def post(self):
        return Post.of(self.model, self.inputs, self.outputs, **(self.parameters or {}))

    def message(self):
        return message(self.model, self.inputs, self.outputs, **(self.parameters or {}))


def _tensors(reason, outputs=("num_instances",), parameters=None, **changed):
    whole = {
        "input": np.zeros((1, 256, 256, 3), np.uint8),
        "img_shape": np.array([[256, 200]], np.int32),
        "ori_shape": np.array([[300, 240]], np.int32),
    }
    inputs = {name: array for name, array in {**whole, **changed}.items() if array is not None}
    return Request(PUBLIC_TENSOR_MODEL, inputs, reason, outputs, parameters)


def _sizes(*rows):
    return np.array(rows, np.int32)


def _images(reason, *files, outputs=("num_instances",), **parameters):
    return Request(PUBLIC_MODEL, image_input(*files), reason, outputs, parameters)


def _with(reason, **parameters):
    return _images(reason, GOOD, **parameters)


_EMPTY = np.zeros((0, 1), object)

TENSORS = {
    "img_shape beyond the input": _tensors(r"img_shape \(300, 256\) must lie within", img_shape=_sizes([300, 256])),
    "img_shape of zero": _tensors(r"img_shape \(0, 0\) must lie within", img_shape=_sizes([0, 0])),
    "img_shape negative": _tensors(r"img_shape \(-5, 9\) must lie within", img_shape=_sizes([-5, 9])),
    "img_shape of the largest numbers": _tensors("img_shape .* must lie within", img_shape=_sizes([2**31 - 1] * 2)),
    "img_shape of three numbers": _tensors("unexpected shape for input 'img_shape'", img_shape=_sizes([1, 2, 3])),
    "img_shape of floats": _tensors("data-type is 'FP32'.* expects 'INT32'", img_shape=np.ones((1, 2), np.float32)),
    "img_shape left out": _tensors("expected 3 inputs but got 2|expected .* inputs", img_shape=None),
    "ori_shape of zero": _tensors(r"ori_shape \(0, 5\) must lie within", ori_shape=_sizes([0, 5])),
    "ori_shape negative": _tensors(r"ori_shape \(-9, -9\) must lie within", ori_shape=_sizes([-9, -9])),
    "ori_shape of smallest numbers": _tensors("ori_shape .* must lie within", ori_shape=_sizes([-(2**31)] * 2)),
    "ori_shape of 65535 x 65535": _tensors("ori_shape .* is too large; .* 67108864", ori_shape=_sizes([65_535] * 2)),
    "ori_shape of largest numbers": _tensors("ori_shape .* 65535 x 65535", ori_shape=_sizes([2**31 - 1] * 2)),
    "ori_shape of 65536 columns": _tensors("ori_shape .* 65535 x 65535", ori_shape=_sizes([1, 65_536])),
    "ori_shape of one pixel": _tensors(None, ori_shape=_sizes([1, 1])),
    "ori_shape of one row": _tensors(None, ori_shape=_sizes([1, 65_535])),
    "panoptic of 16384 x 4096 eight times": _tensors(
        "'panoptic' would take 2147483648 bytes",
        ("panoptic",),
        input=np.zeros((8, 256, 256, 3), np.uint8),
        img_shape=_sizes(*[[256, 256]] * 8),
        ori_shape=_sizes(*[[16_384, 4096]] * 8),
    ),
    "semantic of 16384 x 4096 eight times": _tensors(
        "'semantic' would take 2147483648 bytes",
        ("semantic",),
        input=np.zeros((8, 256, 256, 3), np.uint8),
        img_shape=_sizes(*[[256, 256]] * 8),
        ori_shape=_sizes(*[[16_384, 4096]] * 8),
    ),
    "masks beyond a gigabyte": _tensors(
        "'masks' would take", ("masks",), {"score_threshold": 0.0}, ori_shape=_sizes([8192, 8192])
    ),
    "a size among good ones": _tensors(
        r"image 1 of 2: img_shape \(999, 1\)",
        input=np.zeros((2, 256, 256, 3), np.uint8),
        img_shape=_sizes([256, 200], [999, 1]),
        ori_shape=_sizes([9, 9], [9, 9]),
    ),
    "input of four channels": _tensors(
        "unexpected shape for input 'input'", input=np.zeros((1, 256, 256, 4), np.uint8)
    ),
    "input of floats": _tensors("'FP32', but model .* 'UINT8'", input=np.zeros((1, 256, 256, 3), np.float32)),
    "input of NaN": _tensors("'FP32', but model .* 'UINT8'", input=np.full((1, 256, 256, 3), np.nan, np.float32)),
    "input of infinity": _tensors("'FP32', but model .* 'UINT8'", input=np.full((1, 256, 256, 3), np.inf, np.float32)),
    "input of another size": _tensors(
        r"unexpected shape.*\[-1,256,256,3\]", input=np.zeros((1, 100, 100, 3), np.uint8)
    ),
    "input of no rows": _tensors("unexpected shape for input 'input'", input=np.zeros((1, 0, 256, 3), np.uint8)),
    "input without a batch": _tensors("unexpected shape|batch", input=np.zeros((256, 256, 3), np.uint8)),
    "input of another batch": _tensors("batch", input=np.zeros((2, 256, 256, 3), np.uint8)),
    "input left out": _tensors("expected .* inputs", input=None),
    "input nobody knows": _tensors("expected .* inputs|unexpected inference input", more=_sizes([1, 2])),
    "no images": Request(PUBLIC_MODEL, {"image": _EMPTY}, "expected 1 string elements .*, got 0"),
    "nine images": _images("batch-size must be <= 8", *[GOOD] * 9),
    "images in a row": Request(PUBLIC_MODEL, {"image": np.array([[GOOD, GOOD]], object)}, "unexpected shape"),
    "images without a batch": Request(PUBLIC_MODEL, {"image": np.array([GOOD], object)}, "unexpected shape|batch"),
    "image of numbers": Request(PUBLIC_MODEL, {"image": np.zeros((1, 1), np.int32)}, "'INT32', but .* 'BYTES'"),
    "one bad image of eight": _images("image 5 of 8: not an image", *[GOOD] * 5, b"bad", *[GOOD] * 2),
    "output nobody knows": _images("unexpected inference output 'nothing'", GOOD, outputs=("nothing",)),
    "inner tensor as output": _images("unexpected inference output '_rle'", GOOD, outputs=("_rle",)),
    "output asked for twice": _images(None, GOOD, outputs=("scores", "scores")),
    "model nobody knows": Request("nothing", image_input(GOOD), "unknown model: 'nothing'|is not found"),
    "model of a strange name": Request("../../etc/passwd", image_input(GOOD), "not found|Not Found"),
}

TOO_LONG = "parameters are too long: .* allowed are 65536"
PARAMETERS = {
    "parameter nobody knows": _with("unknown request parameter 'x'; allowed: score_threshold", x=1),
    "parameter of no name": _with("unknown request parameter ''|name", **{"": 1}),
    "parameter of a strange name": _with("unknown request parameter|was not found in the JSON", **{"\u202e\0\n'\"": 1}),
    "parameter of a megabyte": _with(TOO_LONG, **{"x" * 1_000_000: 1}),
    "threshold of text": _with("'score_threshold' must be a number from 0 to 1; got 'high'", score_threshold="high"),
    "threshold above one": _with("'score_threshold' must be .*; got 1.0001", score_threshold=1.0001),
    "threshold below zero": _with("'score_threshold' must be .*; got -1", score_threshold=-1),
    "threshold true": _with("'score_threshold' must be .*; got True", score_threshold=True),
    "threshold very large": _with("'score_threshold' must be", score_threshold=1e308),
    "limit of zero": _with("'pre_top_k' must be a whole number >= 1", pre_top_k=0),
    "limit of the largest number": _with(None, pre_top_k=2**63 - 1, keep_top_k=2**63 - 1),
    "limit of the smallest number": _with("'keep_top_k' must be .*; got -9223372036854775808", keep_top_k=-(2**63)),
    "limit with a fraction": _with("'keep_top_k' must be .*; got 2.5", keep_top_k=2.5),
    "switch as text": _with("'export_postprocess_mask' must be true or false; got 'no'", export_postprocess_mask="no"),
    "semantics nobody knows": _with("'semantics' must be one of", semantics="yolo"),
    "semantics of a megabyte": _with(TOO_LONG, semantics="x" * 1_000_000),
    "class nobody knows": _with("'classes' has no class 'unicorn'", classes="circle,unicorn"),
    "classes of a megabyte": _with(TOO_LONG, classes="x" * 1_000_000),
    "classes of five thousand digits": _with("'classes' has no class '999", classes="9" * 5000),
    "classes of commas": _with(TOO_LONG, classes="," * 100_000),
    "classes in Arabic digits": _with(None, classes="\u0661"),
    "classes of emoji": _with("'classes' has no class", classes="\U0001f469\u200d\U0001f680"),
    "class threshold of nan": _with("'class_score_thresholds' must be", class_score_thresholds="0=nan"),
    "class threshold of no number": _with("'class_score_thresholds' must be", class_score_thresholds="0=1e"),
    "class thresholds without end": _with(TOO_LONG, class_score_thresholds="0=0.5," * 100_000 + "0=0.5"),
    "parameter of 60 kB": _with("unknown request parameter 'xx", **{"x" * 60_000: 1}),
    "semantics of 60 kB": _with("'semantics' must be one of.*xx", semantics="x" * 60_000),
    "classes of 60 kB": _with("'classes' has no class 'xx", classes="x" * 60_000),
    "classes of 60,000 commas": _with("'classes' has no class ''", classes="," * 60_000),
    "class thresholds of 60 kB": _with("has class 0 twice", class_score_thresholds="0=0.5," * 10_000 + "0=0.5"),
}
