"""Train the shapes model with mmdet on a CPU.

    python examples/shapes/train.py --data data/shapes --work-dir work/shapes

Stages: first the pixel decoder alone, by a loss that only training has (dense_supervision.py); then the whole model
on small inputs, which are cheap; last the whole model at the served size. All stages share one optimizer and one
learning-rate curve. Every 500 steps, and at the end, the weights are written to WORK_DIR/mask2former_shapes.pth.
``--resume`` resumes from the last full checkpoint.
"""

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "export"))  # works from a clone that is not installed

from m2f_export.sources.mmcv_ops import ensure_mmcv_ops  # noqa: E402

ensure_mmcv_ops()
# mmengine 0.10 keeps optimizer and message history as pickled objects in its own checkpoints, which torch
# refuses to load back by default. Only --resume reads one, and only from the folder this script wrote.
os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"

import dense_supervision  # noqa: E402
import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.registry import LOOPS  # noqa: E402
from mmengine.runner import IterBasedTrainLoop, Runner, find_latest_checkpoint  # noqa: E402

CONFIG = HERE / "mask2former_shapes.py"
WEIGHTS = "mask2former_shapes.pth"


@LOOPS.register_module()
class ForwardTrainLoop(IterBasedTrainLoop):
    """mmengine's loop, except that a resumed run does not load every earlier batch again first."""

    def run(self):
        """Train up to the last step."""
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        while self._iter < self._max_iters:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model


class LengthFromConfig(Hook):
    """Let a resumed run end where the config says, even if the earlier run was to be longer."""

    def after_load_checkpoint(self, runner, checkpoint):  # noqa: ARG002 (mmengine's names)
        """Drop the ends that the schedulers were saved with."""
        for state in checkpoint.get("param_schedulers", []):
            state.pop("end", None)
            state.pop("T_max", None)


class SaveWeights(Hook):
    """Write the weights alone, beside the checkpoints, every ``interval`` steps and at the end."""

    def __init__(self, interval, classes):
        self.interval = interval
        self.classes = classes

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):  # noqa: ARG002 (mmengine's names)
        """Write the weights every ``interval`` steps."""
        if self.every_n_train_iters(runner, self.interval):
            self.after_train(runner)

    def after_train(self, runner):
        """Write the weights."""
        save_weights(runner.model, Path(runner.work_dir) / WEIGHTS, self.classes, runner.iter)


def save_weights(model, path, classes, step):
    """Write a float32 checkpoint that ``torch.load(path, weights_only=True)`` reads: plain Mask2Former."""
    state = {
        name: value.detach().float() if value.is_floating_point() else value.detach()
        for name, value in model.state_dict().items()
        if not name.startswith(dense_supervision.PREFIX)
    }
    meta = {"dataset_meta": {"classes": list(classes)}, "iter": step}
    torch.save({"state_dict": state, "meta": meta}, path)


def configure(data, work_dir, max_iters):
    """Return the config of this folder for the given data, output folder and length of the run."""
    cfg = Config.fromfile(CONFIG)
    cfg.work_dir = str(work_dir)
    cfg.model.panoptic_head.type = "DenselySupervisedHead"
    cfg.train_dataloader.dataset.data_root = str(data)
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None  # see evaluate.py
    cfg.test_dataloader = cfg.test_evaluator = cfg.test_cfg = None
    if max_iters:
        cfg.max_iters = max_iters
    cfg.train_cfg = {"type": "ForwardTrainLoop", "max_iters": cfg.max_iters}
    warmup, cosine = cfg.param_scheduler
    cosine.end, cosine.T_max = cfg.max_iters, cfg.max_iters - warmup.end
    return cfg


def set_stage(cfg, side, until, dense_only=False):
    """Make ``cfg`` train on ``side`` x ``side`` inputs up to step ``until``."""
    cfg.model.panoptic_head.dense_only = dense_only
    cfg.train_cfg.max_iters = until
    cfg.model.data_preprocessor.batch_augments[0].size = (side, side)
    cfg.model.data_preprocessor.pad_size_divisor = 32
    for step in cfg.train_dataloader.dataset.pipeline:
        if step.type == "RandomResize":
            step.scale = (side, side)
        elif step.type == "RandomCrop":
            step.crop_size = (side, side)


def latest(work_dir):
    """Return the last full checkpoint in ``work_dir`` and its step; (None, 0) without one."""
    path = find_latest_checkpoint(str(work_dir))
    return (path, int(Path(path).stem.rsplit("_", 1)[1])) if path else (None, 0)


def train(data, work_dir, *, max_iters=None, resume=False, init=None):
    """Run the stages of the config; each resumes from the checkpoint of the stage before."""
    for number in range(len(configure(data, work_dir, max_iters).stages)):
        cfg = configure(data, work_dir, max_iters)
        stage = cfg.stages[number]
        until = round(stage["until"] * cfg.max_iters)
        checkpoint, done = latest(work_dir) if resume or number else (None, 0)
        if done >= until:
            continue
        set_stage(cfg, stage["side"], until, stage.get("dense_only", False))
        cfg.resume, cfg.load_from = checkpoint is not None, checkpoint or init
        cfg.randomness.seed += done  # shuffles that differ from those already seen
        cfg.experiment_name = f"stage_{number}_from_{done}"
        runner = Runner.from_cfg(cfg)
        runner.register_hook(LengthFromConfig())
        runner.register_hook(SaveWeights(cfg.default_hooks.checkpoint.interval, cfg.classes))
        runner.train()


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that generate.py wrote")
    parser.add_argument("--work-dir", type=Path, required=True, help="folder for log and checkpoints")
    parser.add_argument("--max-iters", type=int, help="length of the whole run in steps; default: the config's")
    parser.add_argument("--resume", action="store_true", help="resume from the last checkpoint")
    parser.add_argument("--init", help="start from these weights instead of random ones")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.data, args.work_dir, max_iters=args.max_iters, resume=args.resume, init=args.init)


if __name__ == "__main__":
    main()
