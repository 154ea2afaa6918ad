"""Small mmdetection configurations, written out, and the inputs that mmdetection and this project make of images."""

import json

import numpy as np

LOAD, PACK = "dict(type='LoadImageFromFile')", "dict(type='PackDetInputs')"
RESIZE = "dict(type='Resize', scale=(96, 64), keep_ratio=True)"
PIPELINE = f"[{LOAD}, {RESIZE}, {PACK}]"
PREPROCESSOR = {
    "type": "'DetDataPreprocessor'", "mean": "[124, 116, 104]", "std": "[58, 57, 57]", "bgr_to_rgb": "True",
    "pad_size_divisor": "32",
}  # fmt: skip


def dict_of(values):
    """Python text of a dict whose values are Python text."""
    return f"dict({', '.join(f'{key}={value}' for key, value in values.items() if value is not None)})"


def write_config(
    folder,
    *,
    pipeline=PIPELINE,
    dataset=None,
    test_cfg="dict()",
    metainfo=None,
    head="num_things_classes=2",
    before="",
    after="",
    **preprocessor,
):
    """Write a configuration without a base; every value is Python text.

    Args:
        folder: where `c.py` is written.
        pipeline: the test pipeline.
        dataset: the data set of the test, in place of one with `pipeline` and `metainfo`.
        test_cfg: the model's test_cfg.
        metainfo: the data set's `metainfo`.
        head: options of the head, without num_stuff_classes.
        before: lines before everything else.
        after: lines behind everything else.
        preprocessor: options of the data preprocessor; None removes one.
    """
    dataset = dataset or dict_of({"type": "'BaseDetDataset'", "pipeline": pipeline, "metainfo": metainfo})
    path = folder / "c.py"
    path.write_text(f"""{before}
model = dict(type="Mask2Former", data_preprocessor={dict_of({**PREPROCESSOR, **preprocessor})},
             panoptic_head=dict(num_stuff_classes=0, {head}), test_cfg={test_cfg})
test_dataloader = dict(dataset={dataset})
{after}
""")
    return path


def mmdetections_inputs(config, files):
    """What mmdetection's own data set and preprocessor make of encoded images, one by one.

    Returns:
        For each, the network's input float32 [1, 3, H, W], and the size of the image in it.
    """
    from m2f_export.sources.mmcv_ops import ensure_mmcv_ops

    ensure_mmcv_ops()
    from mmdet.registry import DATASETS, MODELS
    from mmengine.config import Config
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    settings = Config.fromfile(config)
    entries = []
    for index, data in enumerate(files):
        path = config.with_name(f"image{index}")
        path.write_bytes(data)
        entries.append({"img_path": str(path), "img_id": index, "height": 1, "width": 1, "instances": []})
    annotations = config.with_name("annotations.json")
    annotations.write_text(json.dumps({"metainfo": {}, "data_list": entries}))
    pipeline = settings.test_dataloader.dataset.pipeline
    stated = {"ann_file": str(annotations), "data_prefix": {}, "pipeline": pipeline, "test_mode": True}
    dataset = DATASETS.build({"type": "BaseDetDataset", "serialize_data": False, **stated})  # collects no garbage
    preprocessor = MODELS.build(settings.model.data_preprocessor)
    for index in range(len(files)):
        prepared = preprocessor(pseudo_collate([dataset[index]]))
        yield prepared["inputs"].numpy(), prepared["data_samples"][0].img_shape


def served(config, layout):
    """The preprocessing that a server reads from an export of a configuration, and whether the network takes BGR."""
    from m2f.preprocess import Preprocessing
    from m2f_export.graph import with_input
    from m2f_export.repository_writer import preprocessing_parameters
    from m2f_export.sources.mmdet_config import describe, read_config
    from m2f_export.sources.mmdetection import as_source

    described = describe(read_config(config), config)
    source = with_input(as_source(described, config), layout=layout, size=None)
    written = preprocessing_parameters(source.preprocessing)
    preprocessing = Preprocessing.from_repository({key: value for key, value in written.items() if value is not None})
    return preprocessing, described.preparation.takes_bgr


def served_input(preprocessing, takes_bgr, data):
    """What a server and its graph make of an encoded image, as `mmdetections_inputs` has it."""
    import torch

    batch, img_shape, _ = preprocessing([data])
    if preprocessing.layout == "uint8_hwc":  # as m2f_export.graph.EngineGraph normalises
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        batch = ((torch.from_numpy(batch).float().permute(0, 3, 1, 2) - mean) / std).numpy()
    return np.flip(batch, 1) if takes_bgr else batch, tuple(img_shape[0].tolist())
