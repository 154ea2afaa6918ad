"""mmdetection's own post-processing: `MaskFormerFusionHead` and the head's upsampling, unchanged."""

STRIDE = 4


def load():
    """A function: logits and sizes of an image -> mmdetection's results."""
    from m2f_export.sources.mmcv_ops import ensure_mmcv_ops

    ensure_mmcv_ops()
    import torch
    from mmdet.models.seg_heads.panoptic_fusion_heads import MaskFormerFusionHead
    from mmdet.structures import DetDataSample
    from mmengine.config import ConfigDict

    torch.set_num_threads(1)  # threads that wait for each other cost more than they save on small images

    def predict(cls_logits, mask_logits, img_shape, ori_shape, *, num_things, **test_cfg):
        num_stuff = cls_logits.shape[1] - 1 - num_things
        head = MaskFormerFusionHead(num_things, num_stuff, ConfigDict(test_cfg))
        padded = tuple(STRIDE * n for n in mask_logits.shape[1:])
        masks = torch.nn.functional.interpolate(
            torch.from_numpy(mask_logits)[None], padded, mode="bilinear", align_corners=False
        )
        sample = DetDataSample(metainfo={"img_shape": img_shape, "ori_shape": ori_shape})
        return head.predict(torch.from_numpy(cls_logits)[None], masks, [sample], rescale=True)[0]

    def instances(*image, max_per_image):
        num_things = image[0].shape[1] - 1
        on = {"instance_on": True, "semantic_on": False, "panoptic_on": False, "max_per_image": max_per_image}
        return predict(*image, num_things=num_things, **on)["ins_results"]

    predict.instances = instances
    return predict
