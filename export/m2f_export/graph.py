"""Source -> ONNX: standard operators, a free batch, uint8 pixels or normalised floats as input."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnxslim
import torch

from m2f.preprocess import Preprocessing
from m2f_export.export_errors import ExportError, reason
from m2f_export.onnx_files import INPUT, OPSET, OUTPUTS, check_graph, check_input_size
from m2f_export.quiet import quiet
from m2f_export.rewrite import rewritten
from m2f_export.sources.base import Source

if TYPE_CHECKING:
    from m2f_export.ladder import Logits, Sample

# Traced where both sides are dynamic: at no level of a Swin of window 7 or 12 may a side be a multiple of the
# window, or the trace would fix "no padding needed".
TRACED_SIZE = (128, 160)
_SIZE_AXES = {INPUT: ("height", "width"), "mask_logits": ("mask_height", "mask_width")}


class EngineGraph(torch.nn.Module):
    """What the engine computes; for a uint8 input this includes the normalisation."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        if source.network is None:
            raise ExportError(f"{source.kind}: there is no network to trace")
        self.network = source.network
        self.takes_pixels = source.preprocessing.layout == "uint8_hwc"
        self.mean = _channels(source.preprocessing.mean)
        self.std = _channels(source.preprocessing.std)
        self.eval()  # torch's exporter puts every module into the mode of the outermost

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of a batch.

        Args:
            image: uint8 [N, H, W, channels], or normalised float32 [N, channels, H, W]; RGB, or one channel of grey.

        Returns:
            cls_logits float32 [N, Q, C+1] and mask_logits float32 [N, Q, H/4, W/4].
        """
        if self.takes_pixels:
            # TensorRT takes uint8 only into a cast, not into a transpose
            image = (image.float().permute(0, 3, 1, 2) - self.mean) / self.std
        cls_logits, mask_logits = self.network(image)
        return cls_logits, mask_logits


def with_input(source: Source, *, layout: str, size: tuple[int, int] | None) -> Source:
    """Return the source with the input of its graph decided.

    Args:
        source: the model that was read.
        layout: `uint8_hwc` or `float32_chw`; `uint8_hwc` is not taken if no pixel is the source's padding.
        size: fixed height and width; None: the size that the source stretches images to, else both free.

    Raises:
        ExportError: the network does not take the size or the layout.
    """
    size = size or source.fixed_size or source.preprocessing.input_size
    if source.fixed_size and size != source.fixed_size:
        raise ExportError(f"{source.kind} takes {source.fixed_size} only; got a size of {size}")
    if size:
        check_input_size(size, source.kind)
    if size and (min(size) < source.divisor or any(side % source.divisor for side in size)):
        raise ExportError(f"the input's height and width must be multiples of {source.divisor}; got {size}")
    preprocessing = replace(source.preprocessing, input_size=size)
    if layout != preprocessing.layout == "uint8_hwc":
        preprocessing = _as_floats(preprocessing, source.kind)
    return replace(source, preprocessing=preprocessing)


def _as_floats(preprocessing: Preprocessing, kind: str) -> Preprocessing:
    channels = zip(preprocessing.mean, preprocessing.std, strict=True)
    if preprocessing.pad_value != tuple(round(preprocessing.float_pad_value * std + mean) for mean, std in channels):
        raise ExportError(f"{kind} pads with {preprocessing.pad_value} before it normalises: give --layout uint8_hwc")
    return replace(preprocessing, layout="float32_chw", pad_value=(0,) * preprocessing.channels)


def export_onnx(source: Source, output: Path) -> EngineGraph:
    """Trace a source, simplify, rewrite and check the graph, and write it.

    Args:
        source: a source that `with_input` returned.
        output: the ONNX file to write.

    Returns:
        The module that was traced: the reference for the file's results.

    Raises:
        ExportError: the network cannot be traced, the graph holds custom operators, or ONNX's checker refuses it.
    """
    graph = EngineGraph(source)
    axes: dict[str, dict[int, str]] = {name: {0: "batch"} for name in (INPUT, *OUTPUTS)}
    if source.preprocessing.input_size is None:
        for name, sides in _SIZE_AXES.items():
            first = 1 if name == INPUT and graph.takes_pixels else 2
            axes[name] |= {first: sides[0], first + 1: sides[1]}
    traced: Any = io.BytesIO()  # `export` takes files too, its annotation does not say so
    example = _example(source.preprocessing)
    with quiet():  # the comparison afterwards checks what the tracer warns of
        try:
            with torch.inference_mode():
                outputs = graph(example[:1])
            torch.onnx.export(
                graph, (example,), traced, input_names=[INPUT], output_names=list(OUTPUTS),
                dynamic_axes=axes, opset_version=OPSET, dynamo=False,
            )  # fmt: skip
            slim = rewritten(onnxslim.slim(onnx.load_from_string(traced.getvalue())))
        except Exception as error:  # PyTorch's, or of any module of the network
            raise ExportError(f"{source.kind} cannot be traced: {reason(error)}") from error
    _state_shapes(slim, outputs, fixed=source.preprocessing.input_size is not None)
    check_graph(slim)
    onnx.save(slim, output)
    return graph


def run_torch(graph: EngineGraph) -> Callable[[Sample], Logits]:
    """Return a function that computes a sample's logits with the traced module itself."""

    def run(sample: Sample) -> Logits:
        with torch.inference_mode():
            cls_logits, mask_logits = graph(torch.from_numpy(sample.pixels))
        return cls_logits.numpy(), mask_logits.numpy()

    return run


def _state_shapes(model: onnx.ModelProto, outputs: tuple[torch.Tensor, ...], *, fixed: bool) -> None:
    """Write the fixed axes of the outputs' shapes into the graph: the tracer leaves most of them unnamed."""
    for value, output in zip(model.graph.output, outputs, strict=True):
        stated = output.shape[1:] if fixed or output.ndim == 3 else output.shape[1:2]
        for dim, size in zip(value.type.tensor_type.shape.dim[1:], stated, strict=False):
            dim.dim_value = size


def _channels(values: tuple[float, ...]) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1), requires_grad=False)


def _example(preprocessing: Preprocessing) -> torch.Tensor:
    # Two images: with one, every axis of size 1 would look like a constant.
    size = preprocessing.input_size or TRACED_SIZE
    if preprocessing.layout == "uint8_hwc":
        return torch.zeros(2, *size, preprocessing.channels, dtype=torch.uint8)
    return torch.zeros(2, preprocessing.channels, *size)
