"""The project's own ops for the IPU (folder custom_ops): switched on by settings, loaded, and accounted for.

Each is a library whose patterns change the compiled program; loading it is all a program has to do.
"""
from __future__ import annotations

import ctypes
import math
from collections import defaultdict
from typing import Any, Dict, List, Sequence, Tuple

from bert_ipu.backend import Backend, custom_op_library
from bert_ipu.config import CustomOpsConfig
from bert_ipu.errors import ConfigError

TILES, WORKERS = 1472, 6  # of a Mk2 IPU
ITEM_BYTES = {"float16": 2, "float32": 4}


def pattern_switches(settings: CustomOpsConfig) -> Dict[str, bool]:
    """The patterns of the libraries that `load` loads, on or off; naming others is an error on the SDK."""
    switches: Dict[str, bool] = {}
    if settings.group_pattern:
        switches["GroupPattern"] = True
    if settings.sparse_sgd:
        switches["SparseSGDPattern"] = True
    if settings.dropout_removal or settings.unmasked_attention_gradient:
        switches["RemoveInferenceDropout"] = settings.dropout_removal
        switches["DisableAttnDropoutBwd"] = settings.unmasked_attention_gradient
    return switches


def libraries(settings: CustomOpsConfig) -> List[str]:
    """The names of the libraries that are switched on."""
    wanted = {
        "group_pattern": settings.group_pattern,
        "sparse_sgd": settings.sparse_sgd,
        "dropout_removal": settings.dropout_removal or settings.unmasked_attention_gradient,
    }
    return [name for name, switched_on in wanted.items() if switched_on]


def load(settings: CustomOpsConfig, backend: Backend) -> List[str]:
    """Load the libraries that are switched on, before a model is compiled; returns their names.

    Raises ConfigError: a library is not built, cannot be built, or does not load.
    """
    loaded = libraries(settings)
    for name in loaded:
        path = custom_op_library(backend, name)
        try:
            ctypes.cdll.LoadLibrary(str(path))
        except OSError as error:
            raise ConfigError(
                f"custom_ops.{name}: {path} cannot be loaded ({error}). Delete it and build it again, or set "
                f"custom_ops.{name}=false.") from error
    return loaded


def report(loaded: Sequence[str], executor: Any, program: str = "training") -> List[str]:
    """One line for each pattern that matched: how often, and what that saves per micro-batch or update.

    `program` says what the executor runs.
    """
    if not loaded:
        return []
    if not hasattr(type(executor), "pattern_changes"):
        return [f"custom ops        {', '.join(loaded)} loaded; POPART_LOG_LEVEL=DEBUG shows what they match"]
    counts: Dict[Tuple[str, str], List[int]] = defaultdict(lambda: [0, 0, 0])
    for change in executor.pattern_changes():
        total = counts[change.pattern, change.matched]
        for index, value in enumerate((1, *savings(change))):
            total[index] += value
    lines = [
        f"{pattern} matched {count} {matched}: saves {saved_bytes:,} bytes and {cycles:,} cycles"
        + (" at most, where layouts differ" if pattern == "GroupPattern" else " each time they run")
        for (pattern, matched), (count, saved_bytes, cycles) in sorted(counts.items())
    ]
    nothing = [f"{', '.join(loaded)}: nothing matched"]
    return [f"custom ops        {program}: {line}" for line in lines or nothing]


def savings(change: Any) -> Tuple[int, int]:
    """Bytes and cycles that one application of a pattern saves, its tensors spread evenly over all tiles.

    Formulas: poplibs' cycle estimators (popopsCycleEstimators.cpp: BinaryOp1D; poprandCycleEstimators.cpp:
    dropout; ConvModel.cpp: rearrangement by pieces of 2, 4 and 8 bytes).
    """
    removed = change.removed[0] if change.removed else change.added[0]
    item = ITEM_BYTES[str(removed.dtype).split(".")[-1]]
    elements = math.prod(removed.output)
    on_tile, vector = math.ceil(elements / TILES), 8 // item
    if change.pattern == "SparseSGDPattern":  # the table, and its addition to the accumulator
        vectors = math.ceil(math.ceil(on_tile / WORKERS) / vector)
        return elements * item, WORKERS * ((29 if item == 4 else 26) + 3 * vectors) + 11
    if change.pattern == "GroupPattern":  # the gradient moves in pieces of 8 bytes instead of single numbers
        slow, quick = {2: 5271, 4: 3200}[item], 451
        return 0, (slow - quick) * on_tile * item // 1024
    return elements * item, 6 + 24 * WORKERS + 2 * math.ceil(on_tile / vector)
