"""A Hugging Face folder (`config.json`, weights, `preprocessor_config.json`) -> Source.

Written against transformers 5.23. Nothing is fetched, and no code of the folder runs: the classes are those of the
installed transformers.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoderEncoderOnly
from transformers.models.maskformer.modeling_maskformer_swin import MaskFormerSwinLayer
from transformers.models.swin.modeling_swin import SwinLayer
from transformers.utils import logging

from m2f.model_facts import ModelFacts
from m2f.preprocess import Preprocessing
from m2f_export.export_errors import ExportError
from m2f_export.sources.base import Source

ARCHITECTURES = (
    "Mask2FormerForUniversalSegmentation",
    "MaskFormerForInstanceSegmentation",
    "EomtForUniversalSegmentation",
    "EomtDinov3ForUniversalSegmentation",
)
_FIXED_SIZE = ("EomtForUniversalSegmentation", "EomtDinov3ForUniversalSegmentation")
_PROCESSORS = ("Mask2FormerImageProcessor", "MaskFormerImageProcessor", "EomtImageProcessor")
_RESAMPLES = {2: "pillow_bilinear", 3: "pillow_bicubic"}  # PIL.Image.Resampling
_DIVISOR = 32  # the coarsest feature map is at stride 32
_STRIDE = 4
_POINTS = 4  # per head and level of Mask2Former's deformable attention; not configurable in transformers
# Weights that a checkpoint may lack or have in excess: those of the loss, and a table that Swin computes.
_IMMATERIAL = ("criterion.", "relative_position_index")
_UNREADABLE = (
    OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, ImportError, EOFError,
    SafetensorError, StrictDataclassError, pickle.UnpicklingError,
)  # fmt: skip


class Network(torch.nn.Module):
    """A model of transformers, reduced to its two outputs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute normalised RGB [N, 3, H, W] -> cls_logits [N, Q, C+1], mask_logits [N, Q, H/4, W/4]."""
        # without it, `use_auxiliary_loss` decides whether the states that the logits come from exist
        outputs = self.model(pixel_values=image, output_hidden_states=True)
        return outputs.class_queries_logits, outputs.masks_queries_logits


def load_huggingface(folder: Path) -> Source:
    """Read a folder that `save_pretrained` of transformers wrote.

    Args:
        folder: a folder with `config.json`, `model.safetensors` (or its shards, or a `pytorch_model.bin` of plain
            tensors) and `preprocessor_config.json`.

    Raises:
        ExportError: a file is missing or cannot be read, the architecture is not supported, the weights do not fit the
            configuration, the masks are not at stride 4, or the server cannot reproduce the image processing.
    """
    architecture = _read_architecture(folder / "config.json")
    preprocessing = read_preprocessing(folder / "preprocessor_config.json")
    model = _load_model(folder, architecture)
    config = model.config
    fixed_size = _fixed_size(model, preprocessing, folder) if architecture in _FIXED_SIZE else None
    network = Network(_free_sizes(model)).eval()
    _check_stride(network, fixed_size or (2 * _DIVISOR, 2 * _DIVISOR), folder)
    return Source(
        kind=f"Hugging Face {architecture}",
        network=network,
        preprocessing=preprocessing,
        facts=ModelFacts(class_names=_class_names(config.id2label, folder), mask_stride=_STRIDE),
        num_classes=config.num_labels,
        divisor=config.patch_size if fixed_size else _DIVISOR,
        fixed_size=fixed_size,
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.parent.is_dir():
        raise ExportError(f"{path.parent}: no such folder")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ExportError(f"{path}: no such file; a Hugging Face folder has one") from error
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ExportError(f"{path} is not a JSON object")
    return value


def _read_architecture(path: Path) -> str:
    config = _read_json(path)
    stated = config.get("architectures")
    architecture = stated[0] if isinstance(stated, list) and stated else None
    if architecture not in ARCHITECTURES:
        raise ExportError(
            f"{path}: architecture {architecture!r} is not supported; supported: {', '.join(ARCHITECTURES)}"
        )
    backbone = config.get("backbone_config")
    if config.get("use_timm_backbone") or (
        isinstance(backbone, dict) and backbone.get("model_type") == "timm_backbone"
    ):
        raise ExportError(f"{path}: backbones of timm are not supported; supported: those of transformers")
    return str(architecture)


# --- weights ---------------------------------------------------------------------------------------------------------


def _load_model(folder: Path, architecture: str) -> Any:
    model_class = getattr(transformers, architecture)
    try:
        with _quiet():
            model, info = model_class.from_pretrained(
                folder, local_files_only=True, weights_only=True, attn_implementation="eager", dtype=torch.float32,
                ignore_mismatched_sizes=True, output_loading_info=True,
            )  # fmt: skip
    except _UNREADABLE as error:
        raise ExportError(f"{folder} cannot be loaded as {architecture}: {error or type(error).__name__}") from error
    _check_weights(info, folder)
    return model.requires_grad_(False).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide transformers' progress bar and report; its faults become an ExportError."""
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _check_weights(info: dict[str, Any], folder: Path) -> None:
    """Refuse what transformers only warns about: weights that stay random, or that are not used."""
    problems = []
    for kind in ("missing", "unexpected", "mismatched"):
        keys = [key if isinstance(key, str) else key[0] for key in info[f"{kind}_keys"]]
        keys = sorted(key for key in keys if not any(word in key for word in _IMMATERIAL))
        if keys:
            more = ", ..." if len(keys) > 3 else ""
            problems.append(f"{len(keys)} {kind} ({', '.join(keys[:3])}{more})")
    if problems:
        raise ExportError(f"{folder}: the weights do not fit config.json: {'; '.join(problems)}")


def _class_names(id2label: dict[int, str], folder: Path) -> tuple[str, ...]:
    if sorted(id2label) != list(range(len(id2label))):
        raise ExportError(f"{folder / 'config.json'}: id2label must number the classes from 0 without gaps")
    return tuple(id2label[label] for label in sorted(id2label))


# --- tracing ---------------------------------------------------------------------------------------------------------


def _free_sizes(model: Any) -> Any:
    """Rewrite what a trace would fix to its own height and width. The batch is already free."""
    for module in model.modules():
        if isinstance(module, Mask2FormerPixelDecoderEncoderOnly):
            module.get_reference_points = _reference_points  # type: ignore[method-assign]
        elif isinstance(module, SwinLayer | MaskFormerSwinLayer):
            module.maybe_pad = _always_cropped(module.maybe_pad)  # type: ignore[method-assign]
    return model


def _reference_points(
    spatial_shapes_list: Any,
    valid_ratios: torch.Tensor,
    device: torch.device,  # noqa: ARG001 (always the CPU)
) -> torch.Tensor:
    """Return the centre of every cell at every level, for the deformable attention: [1, sum(h * w), levels, 4].

    Equals Mask2FormerPixelDecoderEncoderOnly.get_reference_points without padding (this model never reports any), but
    without `linspace`, and with boxes instead of points. The attention takes both; with boxes it scales its offsets by
    the box instead of by a tensor of Python numbers.
    """
    centres, boxes = [], []
    for height, width in spatial_shapes_list:
        size = torch.stack([torch.as_tensor(width), torch.as_tensor(height)]).to(valid_ratios)
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centres.append((torch.stack([x, y], -1).flatten(0, 1).to(valid_ratios) + 0.5) / size)
        boxes.append(2 * _POINTS / size)  # undoes the attention's own `/ n_points * 0.5`
    points = torch.cat(centres)[:, None].expand(-1, len(boxes), -1)  # [sum(h * w), levels, 2]
    return torch.cat([points, torch.stack(boxes).expand_as(points)], -1)[None]


def _always_cropped(maybe_pad: Any) -> Any:
    """Make a Swin layer crop its padding even if the traced size needed no padding."""

    def padded(hidden_states: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, tuple[int, ...]]:
        states, _ = maybe_pad(hidden_states, height, width)
        return states, (0, 0, 0, 1, 0, 1)  # the layer only asks whether right and bottom are above 0

    return padded


def _fixed_size(model: Any, preprocessing: Preprocessing, folder: Path) -> tuple[int, int]:
    """Return the one size that an EoMT takes.

    Raises:
        ExportError: images are prepared for another size, or the training stopped while masks were still random.
    """
    size = (model.config.image_size, model.config.image_size)
    if preprocessing.input_size != size:
        made = preprocessing.input_size or "several sizes"
        raise ExportError(f"{folder}: the image processor makes inputs of {made}, image_size of config.json is {size}")
    if any(0 < probability < 1 for probability in model.attn_mask_probs.tolist()):
        raise ExportError(
            f"{folder}: attn_mask_probs is {model.attn_mask_probs.tolist()}; supported: 0 and 1. "
            "Between them the model masks its queries at random, a state of training"
        )
    return size


def _check_stride(network: Network, size: tuple[int, int], folder: Path) -> None:
    with torch.inference_mode():
        _, masks = network(torch.zeros(1, 3, *size))
    wanted = (size[0] // _STRIDE, size[1] // _STRIDE)
    if masks.shape[2:] != wanted:
        raise ExportError(
            f"{folder}: masks of {tuple(masks.shape[2:])} for an input of {size}; "
            f"supported: stride {_STRIDE}, so {wanted}"
        )


# --- image processing ------------------------------------------------------------------------------------------------


def read_preprocessing(path: Path) -> Preprocessing:
    """Translate a `preprocessor_config.json`.

    Raises:
        ExportError: the file is missing or cannot be read, or the server cannot reproduce an option.
    """
    processor = _read_processor(path)
    problems = _problems(processor)
    if problems:
        raise ExportError(f"{path}: the server cannot reproduce {'; '.join(problems)}")
    # transformers: (pixel * rescale_factor - mean) / std
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    mean, std = tuple(value / factor for value in mean), tuple(value / factor for value in std)
    black = _is_eomt(processor)  # pads before the normalisation, the others after it
    return Preprocessing(
        **_resize_rule(processor),
        resample=_RESAMPLES[processor.resample],
        mean=mean,
        std=std,
        pad_value=(0, 0, 0) if black else tuple(round(value) for value in mean),
    )


def _read_processor(path: Path) -> Any:
    """Build the processor that the file describes: it knows the defaults and the older spellings."""
    settings = _read_json(path)
    stated = str(settings.get("image_processor_type") or settings.get("feature_extractor_type"))
    name = stated.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if name not in _PROCESSORS:
        raise ExportError(f"{path}: image processor {stated!r} is not supported; supported: {', '.join(_PROCESSORS)}")
    try:
        # the variant that needs no torchvision; its pixels are the same
        return getattr(transformers, f"{name}Pil").from_dict(settings)
    except _UNREADABLE as error:
        raise ExportError(f"{path}: {error}") from error


def _is_eomt(processor: Any) -> bool:
    return type(processor).__name__.startswith("Eomt")


def _problems(processor: Any) -> list[str]:
    """Return the options that Preprocessing cannot express."""
    problems = []
    if not processor.do_resize:
        problems.append("do_resize false")
    if processor.resample not in _RESAMPLES:
        problems.append(f"resample {processor.resample} (allowed: 2, bilinear, and 3, bicubic)")
    for name in ("image_mean", "image_std"):
        value = getattr(processor, name)
        if processor.do_normalize and (not isinstance(value, list | tuple) or len(value) != 3):
            problems.append(f"{name} {value} (allowed: three numbers)")
    return problems + (_size_problems_of_eomt(processor) if _is_eomt(processor) else _size_problems(processor))


def _size_problems(processor: Any) -> list[str]:
    problems = []
    if processor.pad_size:
        problems.append(f"pad_size {_stated(processor.pad_size)}")
    if _is_range(processor.size):
        sides = [processor.size_divisor or 1]
    elif processor.size.height and processor.size.width:
        sides = list(_resize_rule(processor)["input_size"])
    else:
        return [*problems, f"size {_stated(processor.size)} (allowed: height and width, or shortest_ and longest_edge)"]
    if any(side % _DIVISOR for side in sides):
        size = _stated(processor.size)
        problems.append(f"size {size} with size_divisor {processor.size_divisor} (inputs are multiples of {_DIVISOR})")
    return problems


def _size_problems_of_eomt(processor: Any) -> list[str]:
    if processor.do_split_image:
        return ["do_split_image true (semantic EoMT: several crops of one image)"]
    size = processor.size
    if not (_is_range(size) if processor.do_pad else size.height and size.width):
        allowed = "shortest_ and longest_edge, padded, or height and width, not padded"
        return [f"size {_stated(size)} with do_pad {processor.do_pad} (allowed: {allowed})"]
    return []


def _is_range(size: Any) -> bool:
    return bool(size.shortest_edge and size.longest_edge and size.shortest_edge <= size.longest_edge)


def _stated(size: Any) -> dict[str, int]:
    return {name: value for name, value in dict(size).items() if value}


def _resize_rule(processor: Any) -> dict[str, Any]:
    """Translate `size` and `size_divisor`."""
    size, divisor = processor.size, getattr(processor, "size_divisor", None) or 1
    if not _is_range(size):
        height, width = (-(-side // divisor) * divisor for side in (size.height, size.width))
        return {"scale": (width, height), "keep_ratio": False, "input_size": (height, width)}
    rule = {"scale": (size.longest_edge, size.shortest_edge), "size_rule": "huggingface", "pad_divisor": divisor}
    return rule | ({"input_size": (size.shortest_edge, size.longest_edge)} if _is_eomt(processor) else {})
