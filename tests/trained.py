"""A small network and two sets of weights for it."""

import torch


def network():
    """A network whose names have several parts, a batch norm with its counter included."""
    torch.manual_seed(0)
    backbone = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    return torch.nn.ModuleDict({"backbone": backbone, "head": torch.nn.Linear(4, 2)})


TRAINED = {
    name: torch.randn(tensor.shape) if tensor.ndim else tensor for name, tensor in network().state_dict().items()
}
OTHER = {name: torch.randn(tensor.shape) if tensor.ndim else tensor for name, tensor in TRAINED.items()}


def renamed(change, weights=TRAINED):
    return {change(name): tensor for name, tensor in weights.items()}


def behind(prefix, weights=TRAINED):
    return renamed(lambda name: prefix + name, weights)
