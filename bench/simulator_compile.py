"""How long compiling takes, imports and the making of the model apart: at first, and from the executable cache.

    python bench/simulator_compile.py [--configs demo_tiny_128 pretrain_base_128] [--rounds 3]

Each time is of a process of its own, which compiles one named pretraining configuration for the simulated
device (micro-batches of 1, one replica, as many as its pipeline needs) and loads its weights.  Medians of the
wall clock and of the CPU's; a "cached" process finds what a first one kept.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ASKED = {"demo_tiny_128": 2.0, "pretrain_base_128": 15.0}
ASKED_CACHED = 1.0


def compile_once(name: str, cache: str) -> dict[str, float]:
    """Compile a configuration in this process; its seconds by both clocks, from inputs to weights loaded."""
    sys.path.insert(0, str(ROOT))
    from bert_ipu import simulator

    simulator.install()
    import poptorch
    import torch

    from bert_ipu.config import PretrainConfig, load_config
    from bert_ipu.ipu_options import training_options
    from bert_ipu.optim import make_optimizer
    from bert_ipu.pipeline import pretraining_model

    config = load_config(
        PretrainConfig,
        name,
        [
            "ipu.micro_batch_size=1",
            "ipu.gradient_accumulation=16",
            "ipu.replication_factor=1",
            f"ipu.executable_cache_dir={cache}",
        ],
    )
    model = pretraining_model(config)
    optimizer = make_optimizer(model, config.optim)
    options = training_options(config, False).showCompilationProgressBar(False)
    trainer = poptorch.trainingModel(model.train(), options, optimizer)
    rows, length, masked = config.samples_per_step, config.data.sequence_length, config.data.mask_tokens
    shapes = ((rows, length),) * 4 + ((rows, masked),) * 2 + ((rows, 1),) * 2
    batch: list[Any] = [torch.ones(shape, dtype=torch.int32) for shape in shapes]
    wall, cpu = time.perf_counter(), time.process_time()
    trainer.compile(*batch)
    return {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def measure(name: str, cache: str) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--in-this-process", name, cache]
    quiet = {**os.environ, "POPTORCH_LOG_LEVEL": "ERR"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=quiet)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure every configuration asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", default=list(ASKED))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--in-this-process", nargs=2, metavar=("CONFIG", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_this_process:
        print(json.dumps(compile_once(*arguments.in_this_process)))
        return
    for name in arguments.configs:
        with tempfile.TemporaryDirectory() as cache:
            plain = [measure(name, "") for _ in range(arguments.rounds)]
            filling = [measure(name, cache)]
            cached = [measure(name, cache) for _ in range(arguments.rounds)]
        for what, runs, asked in (
            ("compiled", plain, ASKED.get(name)),
            ("compiled and kept", filling, None),
            ("cached", cached, ASKED_CACHED),
        ):
            wall, cpu = (statistics.median(run[key] for run in runs) for key in ("seconds", "cpu"))
            wanted = "" if asked is None else f", asked {asked:g} s at most"
            print(f"{name:20} {what:18} {wall:6.2f} s ({cpu:.2f} s of CPU){wanted}")


if __name__ == "__main__":
    main()
