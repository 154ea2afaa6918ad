"""An mmdetection Mask2Former checkpoint -> plain ONNX with `cls_logits` and `mask_logits`.

python -m m2f_export.mmdet_onnx CONFIG CHECKPOINT OUTPUT.onnx --size 256 256

The graph takes uint8 RGB and normalises by itself, has a dynamic batch, and holds standard operators only.
ONNX Runtime must agree with PyTorch before the file is put in place.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import onnxslim
import torch

from m2f_export.mmcv_ops import ensure_mmcv_ops

ensure_mmcv_ops()

from mmdet.registry import MODELS  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402

INPUT, OUTPUTS = "input", ("cls_logits", "mask_logits")
OPSET = 17
TOLERANCE = 1e-3  # largest difference of a logit, ONNX Runtime against PyTorch


class EngineGraph(torch.nn.Module):
    """What the engine computes: uint8 RGB [N, H, W, 3] -> logits, masks at stride 4."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cls_logits float32 [N, Q, C+1] and mask_logits float32 [N, Q, H/4, W/4]."""
        preprocessor = self.model.data_preprocessor
        pixels = image.permute(0, 3, 1, 2).float()
        features = self.model.extract_feat((pixels - preprocessor.mean) / preprocessor.std)
        classes, masks = self.model.panoptic_head(features, [])
        return classes[-1], masks[-1]


class ExportError(RuntimeError):
    """The checkpoint does not fit, or the exported graph does not do what it does."""


def load_model(config: Path, checkpoint: Path) -> Any:
    """Build the detector of an mmdetection config and load the weights; evaluation mode, on the CPU.

    Raises:
        ExportError: the checkpoint cannot be read, or its weights are not those of the config.
    """
    init_default_scope("mmdet")
    model = MODELS.build(Config.fromfile(config).model)
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, UnpicklingError) as error:
        raise ExportError(f"{checkpoint} is not a checkpoint of plain weights under 'state_dict': {error}") from error
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ExportError(f"{checkpoint} does not fit {config}: {error}") from error
    return model.eval()


def export_onnx(model: Any, output: Path, *, size: tuple[int, int]) -> float:
    """Trace the model at a fixed height and width, check the graph and write it.

    Args:
        model: what `load_model` returned.
        output: the file to write; it appears only when every check has passed.
        size: input height and width, multiples of 32.

    Returns:
        The largest difference of a logit between ONNX Runtime and PyTorch, over batches of 1, 2 and 5.

    Raises:
        ExportError: custom operators, or a difference above the tolerance.
    """
    graph = EngineGraph(model).eval()  # torch's exporter leaves every module in the mode of the outermost
    draft = output.with_suffix(".draft.onnx")
    axes = {name: {0: "batch"} for name in (INPUT, *OUTPUTS)}
    # traced with two images: with one, every size-1 axis would look like a constant
    example = torch.zeros(2, *size, 3, dtype=torch.uint8)
    try:
        torch.onnx.export(
            graph, (example,), draft, input_names=[INPUT], output_names=list(OUTPUTS),
            dynamic_axes=axes, opset_version=OPSET, dynamo=False,
        )  # fmt: skip
        slim = onnxslim.slim(onnx.load(draft))
        domains = sorted({node.domain for node in slim.graph.node if node.domain not in ("", "ai.onnx")})
        if domains:
            raise ExportError(f"the graph holds custom operators of {', '.join(domains)}")
        onnx.checker.check_model(slim, full_check=True)
        onnx.save(slim, draft)
        difference = compare(graph, draft, size=size)
        draft.replace(output)
    finally:
        draft.unlink(missing_ok=True)
    return difference


def compare(graph: EngineGraph, path: Path, *, size: tuple[int, int]) -> float:
    """Return the largest difference of a logit, ONNX Runtime against PyTorch, on smooth random images.

    White noise would not do: it puts so many mask logits within rounding of 0 that attention masks flip.

    Raises:
        ExportError: it is above the tolerance.
    """
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    worst = 0.0
    for batch in (1, 2, 5):
        coarse = random.integers(0, 256, (batch, 8, 8, 3), dtype=np.uint8)
        images = np.stack([cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC) for image in coarse])
        with torch.inference_mode():
            expected = graph(torch.from_numpy(images))
        for name, want, got in zip(OUTPUTS, expected, session.run(list(OUTPUTS), {INPUT: images}), strict=True):
            difference = float(np.abs(want.numpy() - got).max())
            if not difference <= TOLERANCE:
                raise ExportError(f"{name} differs by {difference:.2e} at batch {batch}; allowed {TOLERANCE:.0e}")
            worst = max(worst, difference)
    return worst


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), required=True)
    args = parser.parse_args()
    try:
        model = load_model(args.config, args.checkpoint)
        difference = export_onnx(model, args.output, size=tuple(args.size))
    except ExportError as error:
        sys.exit(f"export: {error}")
    megabytes = args.output.stat().st_size / 1e6
    print(f"{args.output}: {megabytes:.1f} MB, largest difference to PyTorch {difference:.1e}")


if __name__ == "__main__":
    main()
