"""Loads torchvision where torch is built for a CPU, and lets it read the images of `made_images`.

The wheel of torchvision in the registry is built for CUDA, so that its operators are not there; none is called, but its
import wants two declared.  It knows CIFAR-10's files by their checksums, which made ones have not.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import torch

for _name in ("nms", "qnms"):
    torch.library.define(
        f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    )

_others = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]
_spec = PathFinder.find_spec("torchvision", _others)
if _spec is None or _spec.loader is None:
    raise ModuleNotFoundError("No module named 'torchvision'")
sys.modules["torchvision"] = _torchvision = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_torchvision)

_cifar = _torchvision.datasets.CIFAR10
for _list in (_cifar.train_list, _cifar.test_list):
    for _file in _list:
        _file[1] = None
_cifar.meta["md5"] = None
