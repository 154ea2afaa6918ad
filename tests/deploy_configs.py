"""MMDeploy's deploy configs."""

import copy

# open-mmlab/mmdeploy#2775
ISSUE_2775 = {
    "codebase_config": {
        "type": "mmdet",
        "task": "ObjectDetection",
        "model_type": "panoptic_end2end",
        "post_processing": {
            "export_postprocess_mask": True,
            "score_threshold": 0.8,
            "iou_threshold": 0.5,
            "max_output_boxes_per_class": 200,
            "pre_top_k": 5000,
            "keep_top_k": 100,
            "background_label_id": -1,
        },
    },
    "onnx_config": {
        "type": "onnx",
        "export_params": True,
        "keep_initializers_as_inputs": False,
        "opset_version": 13,
        "save_file": "end2end.onnx",
        "input_names": ["input"],
        "output_names": ["cls_logits", "mask_logits"],
        "input_shape": [1344, 800],
        "dynamic_axes": {"input": {"0": "batch"}, "cls_logits": {"0": "batch"}},
    },
    "backend_config": {
        "type": "tensorrt",
        "common_config": {"fp16_mode": True, "max_workspace_size": 1 << 30},
        "model_inputs": [
            {
                "input_shapes": {
                    "input": {
                        "min_shape": [1, 3, 320, 512],
                        "opt_shape": [1, 3, 800, 1344],
                        "max_shape": [2, 3, 1344, 1344],
                    }
                }
            }
        ],
    },
}


DEPLOY = {
    "codebase_config": {
        "type": "mmdet", "task": "ObjectDetection", "model_type": "panoptic_end2end",
        "post_processing": {
            "export_postprocess_mask": True, "score_threshold": 0.8, "iou_threshold": 0.5,
            "max_output_boxes_per_class": 200, "pre_top_k": 5000, "keep_top_k": 100, "background_label_id": -1,
        },
    },
    "onnx_config": {
        "type": "onnx", "export_params": True, "keep_initializers_as_inputs": False, "opset_version": 13,
        "save_file": "end2end.onnx", "input_names": ["input"], "output_names": ["cls_logits", "mask_logits"],
        "input_shape": None,
        "dynamic_axes": {
            "input": {"0": "batch", "2": "height", "3": "width"}, "cls_logits": {"0": "batch"},
            "mask_logits": {"0": "batch", "2": "height", "3": "width"},
        },
    },
    "backend_config": {"type": "onnxruntime"},
}  # fmt: skip


def changed(keys, value):
    content = copy.deepcopy(ISSUE_2775)
    *sections, last = keys.split(".")
    inner = content
    for section in sections:
        inner = inner[section]
    inner[last] = value
    return content
