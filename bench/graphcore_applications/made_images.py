"""Images in place of those that torchvision downloads, in its files: ten classes, each a pattern under noise.

They stand for MNIST, Fashion-MNIST and CIFAR-10 where a program only has to have something that can be learnt.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

TRAINING = {"MNIST": 4_000, "FashionMNIST": 8_000, "CIFAR10": 2_000}
"""Images to train on: as few as the programs that read them make do with."""
TEST = 4_000
_CLASSES = 10


def write_datasets(folder: Path) -> None:
    """Write the files that torchvision looks for below `root`, so that it downloads none."""
    for name in ("MNIST", "FashionMNIST"):
        _write_idx(folder / name / "raw", TRAINING[name])
    _write_cifar(folder / "cifar-10-batches-py", TRAINING["CIFAR10"])


def _draw(count: int, shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8[count, *shape] and their classes."""
    patterns = np.random.default_rng(0).random((_CLASSES, *shape), np.float32)
    generator = np.random.default_rng(seed)
    labels = generator.integers(_CLASSES, size=count, dtype=np.uint8)
    noise = generator.random((count, *shape), np.float32)
    return (127 * (patterns[labels] + noise)).astype(np.uint8), labels


def _write_idx(folder: Path, training: int) -> None:
    """The format of MNIST's authors: two zeros, the type (8 for bytes), the rank, the sizes, the bytes."""
    folder.mkdir(parents=True)
    for part, count, seed in (("train", training, 1), ("t10k", TEST, 2)):
        for kind, values in zip(("images-idx3", "labels-idx1"), _draw(count, (28, 28), seed), strict=True):
            header = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">i4").tobytes()
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + values.tobytes())


def _write_cifar(folder: Path, training: int) -> None:
    """CIFAR-10's pickles, of five parts of the training images and the test images."""
    folder.mkdir(parents=True)
    parts = [(f"data_batch_{i}", training // 5, i) for i in range(1, 6)] + [("test_batch", TEST, 6)]
    for name, count, seed in parts:
        images, labels = _draw(count, (3, 32, 32), seed)
        batch = {"data": images.reshape(count, -1), "labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))
    names = [f"class {i}" for i in range(_CLASSES)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
