"""A Hugging Face folder (`config.json`, weights, `preprocessor_config.json`) -> Source.

Written against transformers 5.23. Nothing is fetched, and no code of the folder runs: the classes are those of the
installed transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.mask2former.modeling_mask2former import Mask2FormerPixelDecoderEncoderOnly
from transformers.models.maskformer.modeling_maskformer_swin import MaskFormerSwinLayer
from transformers.models.oneformer.modeling_oneformer import OneFormerPixelDecoderEncoderOnly
from transformers.models.swin.modeling_swin import SwinLayer
from transformers.utils import logging

from m2f.errors import shown
from m2f.model_facts import ModelFacts
from m2f.parameters import is_int
from m2f.preprocess import Preprocessing
from m2f.settings import Settings
from m2f_export.export_errors import ExportError, reason
from m2f_export.sources.base import Source
from m2f_export.sources.checkpoint import check_finite, some
from m2f_export.sources.huggingface_folder import check_weights, read_config
from m2f_export.sources.huggingface_oneformer import check_task, task_input
from m2f_export.sources.huggingface_processor import DIVISOR, read_preprocessing, read_settings
from m2f_export.sources.huggingface_things import read_things

_FIXED_SIZE = ("EomtForUniversalSegmentation", "EomtDinov3ForUniversalSegmentation")
_MAX_FIXED_SIDE = 2048  # pixels: EoMT attends from every patch of 16 x 16 to every other
_STRIDE = 4
# of post_process_panoptic_segmentation; the instances are those of the profile `mmdet`, unless a request says otherwise
_SETTINGS = Settings(panoptic_score_threshold=0.5, panoptic_filter_low_score=False)
_POINTS = 4  # per head and level of the deformable attention; not configurable in transformers
# Weights that a checkpoint may lack or have in excess: those of the loss, a table that Swin computes, and what makes
# OneFormer's texts in training.
_IMMATERIAL = ("criterion.", "relative_position_index", "text_mapper.")
# What wrappers put before every name: transformers strips it.
_WRAPPERS = {r"^(?:(?:module|_orig_mod|_fsdp_wrapped_module)\.)+": ""}


class Network(torch.nn.Module):
    """A model of transformers, reduced to its two outputs."""

    task: torch.Tensor | None

    def __init__(self, model: Any, task: torch.Tensor | None = None) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("task", task)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute normalised RGB [N, 3, H, W] -> cls_logits [N, Q, C+1], mask_logits [N, Q, H/4, W/4]."""
        # without it, `use_auxiliary_loss` decides whether the states that the logits come from exist
        task = {} if self.task is None else {"task_inputs": self.task.expand(image.shape[0], -1)}
        outputs = self.model(pixel_values=image, output_hidden_states=True, **task)
        return outputs.class_queries_logits, outputs.masks_queries_logits


def load_huggingface(folder: Path, task: str | None = None) -> Source:
    """Read a folder that `save_pretrained` of transformers wrote.

    Args:
        folder: a folder with `config.json`, `model.safetensors` (or its shards, or a `pytorch_model.bin` of plain
            tensors) and `preprocessor_config.json`.
        task: the task of a OneFormer, `instance`, `panoptic` or `semantic`; None for other models.

    Raises:
        ExportError: a file is missing or cannot be read, the architecture is not supported, the weights do not fit the
            configuration, the masks are not at stride 4, the server cannot reproduce the image processing, or a task
            is missing or too many.
    """
    stated = read_config(folder)
    architecture = stated["architectures"][0]
    check_task(task, architecture, folder)
    names = tuple(stated["id2label"].values())
    preprocessing = read_preprocessing(folder, channels=_channels(stated, folder))
    path, processor = read_settings(folder)
    things = read_things(folder, stated, processor, path, count=len(names))
    model = _load_model(folder, stated, size=check_weights(folder))
    config = model.config
    fixed_size = _fixed_size(model, preprocessing, folder) if architecture in _FIXED_SIZE else None
    tokens = task_input(folder, task, config.task_seq_len) if task else None
    network = Network(_free_sizes(model), tokens).eval()
    _check_stride(network, preprocessing.channels, fixed_size or (2 * DIVISOR, 2 * DIVISOR), folder)
    return Source(
        kind=f"Hugging Face {architecture}" + (f", task {task}" if task else ""),
        network=network,
        preprocessing=preprocessing,
        facts=ModelFacts(class_names=names, thing_classes=things, mask_stride=_STRIDE),
        num_classes=len(names),
        settings=_SETTINGS,
        divisor=config.patch_size if fixed_size else DIVISOR,
        fixed_size=fixed_size,
    )


def _channels(stated: dict[str, Any], folder: Path) -> int:
    """Return the channels of the network's input, which the backbone states."""
    backbone = stated.get("backbone_config")
    key, part = ("backbone_config.", backbone) if isinstance(backbone, dict) else ("", stated)
    channels = part.get("num_channels", 3)
    if channels not in (1, 3) or not is_int(channels):
        raise ExportError(
            f"{folder / 'config.json'}: {key}num_channels is {shown(channels)}; allowed: 3 (RGB), 1 (grey)"
        )
    return int(channels)


# --- weights ---------------------------------------------------------------------------------------------------------


def _load_model(folder: Path, stated: dict[str, Any], *, size: int) -> Any:
    """Build the model that a configuration states, with the weights of its folder.

    Args:
        folder: the folder.
        stated: its `config.json`.
        size: bytes in the files of the weights, which bound the size of the model.
    """
    model_class = getattr(transformers, stated["architectures"][0])
    try:
        with _quiet():
            config = model_class.config_class.from_dict(stated)
            _check_size(model_class, config, folder, size)
            model, info = model_class.from_pretrained(
                folder, config=config, local_files_only=True, weights_only=True, attn_implementation="eager",
                dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True, key_mapping=_WRAPPERS,
            )  # fmt: skip
    except ExportError:
        raise
    except Exception as error:  # any value of config.json reaches constructors
        raise ExportError(f"{folder} cannot be loaded as {model_class.__name__}: {reason(error)}") from error
    _check_weights(info, folder)
    check_finite(model, folder)
    return model.requires_grad_(False).eval()


def _check_size(model_class: Any, config: Any, folder: Path, size: int) -> None:
    """Refuse a configuration of more numbers than the files of the weights can hold, before it takes memory."""
    with torch.device("meta"):
        model = model_class(config)
    count = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if count > size:
        raise ExportError(
            f"{folder}: the weights do not fit config.json: it describes {count} numbers, the files have {size} bytes"
        )


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
            problems.append(f"{len(keys)} {kind} ({some(keys)})")
    if problems:
        raise ExportError(f"{folder}: the weights do not fit config.json: {'; '.join(problems)}")


# --- tracing ---------------------------------------------------------------------------------------------------------


def _free_sizes(model: Any) -> Any:
    """Rewrite what a trace would fix to its own height and width. The batch is already free."""
    for module in model.modules():
        if isinstance(module, Mask2FormerPixelDecoderEncoderOnly | OneFormerPixelDecoderEncoderOnly):
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

    Equals get_reference_points of Mask2Former and OneFormer without padding (they never report any), but
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
    if not is_int(size[0]) or not DIVISOR <= size[0] <= _MAX_FIXED_SIDE:
        raise ExportError(f"{folder / 'config.json'}: image_size is {shown(size[0])}; allowed: up to {_MAX_FIXED_SIDE}")
    if preprocessing.input_size != size:
        made = preprocessing.input_size or "several sizes"
        raise ExportError(f"{folder}: the image processor makes inputs of {made}, image_size of config.json is {size}")
    if any(0 < probability < 1 for probability in model.attn_mask_probs.tolist()):
        raise ExportError(
            f"{folder}: attn_mask_probs is {model.attn_mask_probs.tolist()}; supported: 0 and 1. "
            "Between them the model masks its queries at random, a state of training"
        )
    return size


def _check_stride(network: Network, channels: int, size: tuple[int, int], folder: Path) -> None:
    try:
        with torch.inference_mode():
            _, masks = network(torch.zeros(1, channels, *size))
    except Exception as error:  # any value of config.json reaches the network's modules
        raise ExportError(f"{folder}: the network does not run on an image of {size}: {reason(error)}") from error
    wanted = (size[0] // _STRIDE, size[1] // _STRIDE)
    if masks.shape[2:] != wanted:
        raise ExportError(
            f"{folder}: masks of {tuple(masks.shape[2:])} for an input of {size}; "
            f"supported: stride {_STRIDE}, so {wanted}"
        )
