"""Hugging Face's pipeline on a Mask2Former of its own kind: the embedded model's sizes, random weights.

`huggingface_model.py FOLDER PICTURE ...` makes the model, and FOLDER/expected.json without the pipeline.
"""

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from picture import SIDE, THRESHOLD, answer
from PIL import Image
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig, pipeline
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

CONFIDENCE = 12.0  # factor on the random class weights: about as many instances as the embedded model finds


class Segmenter:
    """The pipeline."""

    def __init__(self):
        torch.set_num_threads(int(os.environ["THREADS"]))
        folder = os.environ["CHECKPOINT"]
        processor = Mask2FormerImageProcessorPil.from_pretrained(folder)
        self.pipeline = pipeline("image-segmentation", model=folder, image_processor=processor, device="cpu")

    def predict(self, encoded):
        """Return the answer, with the names of classes as numbers again."""
        image = Image.open(io.BytesIO(encoded))
        labels = self.pipeline.model.config.label2id
        found = self.pipeline(image, subtask="instance", threshold=THRESHOLD)
        rows = [(labels[one["label"]], one["score"], np.asarray(one["mask"]) > 0) for one in found]
        return answer(rows, (image.height, image.width))


def make(folder):
    """Write a model of the embedded model's sizes and its image processor."""
    torch.manual_seed(0)
    backbone = ResNetConfig(
        layer_type="basic",
        embedding_size=16,
        hidden_sizes=[16, 32, 64, 128],
        depths=[2, 2, 2, 2],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=64,
        mask_feature_size=64,
        hidden_dim=64,
        encoder_layers=2,
        encoder_feedforward_dim=256,
        decoder_layers=4,  # one more than mmdetection counts
        dim_feedforward=256,
        num_attention_heads=4,
        num_queries=40,
        num_labels=5,
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    model.class_predictor.weight.data *= CONFIDENCE
    model.save_pretrained(folder)
    processor = Mask2FormerImageProcessorPil(
        size={"shortest_edge": SIDE, "longest_edge": SIDE}, num_labels=5, ignore_index=255
    )
    processor.save_pretrained(folder)


@torch.inference_mode()
def expected(folder, pictures):
    """Return the answers of the model and its post-processing called one by one."""
    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    processor = Mask2FormerImageProcessorPil.from_pretrained(folder)
    answers = []
    for path in pictures:
        image = Image.open(path)
        size = (image.height, image.width)
        outputs = model(**processor(images=[image], return_tensors="pt"))
        result = processor.post_process_instance_segmentation(outputs, threshold=THRESHOLD, target_sizes=[size])[0]
        ids = result["segmentation"].numpy()
        rows = [(one["label_id"], one["score"], ids == one["id"]) for one in result["segments_info"]]
        answers.append(answer(rows, size))
    return answers


if __name__ == "__main__":
    made = Path(sys.argv[1])
    make(made)
    (made / "expected.json").write_text(json.dumps(expected(made, sys.argv[2:])))
