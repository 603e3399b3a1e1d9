"""Graphcore's tutorials and feature examples of PopTorch, unmodified, on the simulator.

    python bench/graphcore_applications/tutorials.py --clone CLONE --environment DIR [--timeout SECONDS] [NAME ...]

CLONE and DIR are those of `run.py`.  Every program below `tutorials/` that imports poptorch runs in its folder, with
made images in place of MNIST, Fashion-MNIST and CIFAR-10 (`made_images.py`).  Where a walkthrough is there with and
without its text, the one without runs.  The table says how each ended; a program runs if it ends well and prints what
Graphcore's own test of it wants.  Returns 1 where one does not that should.  NAMEs choose programs by a part of their
path.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clones import unpack
from environment import install_beside, make_environment, parser_of_places, variables
from made_images import write_datasets

PACKAGES = (
    "torchvision==0.28.0", "octconv==0.1.0", "pandas==3.0.6", "scikit-learn==1.9.1", "joblib==1.6.0",
    "threadpoolctl==3.7.0", "narwhals==2.29.0",
)  # fmt: skip


@dataclass(frozen=True)
class Program:
    """A program of the clone, with its arguments, and what it prints where it runs."""

    path: str
    arguments: str = ""
    prints: str = ""
    """A pattern; its group, if it has one, is a number that is at least `least`."""
    least: float = 0.0
    before: str = ""
    """A command that makes what the program wants."""
    launcher: str = "-m bert_ipu.simulator"


TUTORIALS = "tutorials/tutorials/pytorch"
FEATURES = "tutorials/feature_examples/pytorch"
SIMPLE = "tutorials/simple_applications"
POPVISION = "tutorials/tutorials/popvision"
ACCURACY = r"Accuracy on test set: ([\d.]+)%"
HALF = "--execution-half --optimizer-half --stochastic-rounding --partials-half"

PROGRAMS = (
    Program(f"{TUTORIALS}/basics/walkthrough_code_only.py", prints=r"Eval accuracy: ([\d.]+)%", least=89),
    Program(f"{TUTORIALS}/efficient_data_loading/tuto_data_loading.py", prints="IPU throughput"),
    Program(
        f"{TUTORIALS}/efficient_data_loading/tuto_data_loading.py",
        "--replicas 2 --synthetic-data",
        "IPU throughput",
    ),
    Program(f"{TUTORIALS}/mixed_precision/walkthrough_code_only.py", prints="Eval accuracy on IPU"),
    Program(f"{TUTORIALS}/mixed_precision/walkthrough_code_only.py", HALF, "Eval accuracy on IPU"),
    Program(f"{TUTORIALS}/observing_tensors/anchor_tensor_example.py", prints="Saved histogram"),
    Program(f"{TUTORIALS}/pipelining/mnist_pipeline.py", "--epochs 10", ACCURACY, 97.5),
    Program(
        f"{TUTORIALS}/pipelining/mnist_pipeline.py",
        "--epochs 10 --strategy sharded --offload-optimiser",
        ACCURACY,
        97.5,
    ),
    Program(f"{SIMPLE}/pytorch/mnist/mnist_poptorch_code_only.py", prints=ACCURACY, least=89),
    *(
        Program(
            f"{FEATURES}/octconv/octconv_example.py",
            f"--conv-mode {mode} --epochs 1 --data-dir ~/.torch/datasets",
            ACCURACY,
            15,
        )
        for mode in ("vanilla", "octave", "multi-octave")
    ),
    Program(
        f"{FEATURES}/custom_op/poptorch_custom_op.py",
        prints=r"Epoch 4 \| Loss: [\d.]+ \| Accuracy: ([\d.]+)",
        least=70,
        before='make -C leaky_relu_example LDLIBS="-shared $(python -m bert_ipu.simulator.native.build --flags)"',
    ),
    Program(
        f"{FEATURES}/popdist/popdist_training.py",
        "--epochs 1",
        launcher="-m bert_ipu.simulator.poprun --num-replicas 4 --num-instances 2 python",
    ),
)

WITH_TEXT = "the same program as walkthrough_code_only.py, with its text"
HUB = "downloads a model of the Hugging Face hub"
GEOMETRIC = "wants poptorch_geometric and data sets of PyTorch Geometric"
NOT_RUN = {
    f"{TUTORIALS}/efficient_data_loading/walkthrough_code_only.py": "ends at once outside of a notebook",
    f"{TUTORIALS}/pipelining/walkthrough_code_only.py": "ends at once outside of a notebook",
    f"{TUTORIALS}/.*/walkthrough.py": WITH_TEXT,
    f"{SIMPLE}/pytorch/mnist/mnist_poptorch.py": "the same program as mnist_poptorch_code_only.py, with its text",
    f"{TUTORIALS}/finetuning_bert/Fine-tuning-BERT.py": f"{HUB}, and SQuAD",
    f"{TUTORIALS}/vit_model_training/.*": "wants Optimum Graphcore, and downloads X-rays",
    f"{SIMPLE}/pytorch/bert/bert_inference.py": HUB,
    f"{SIMPLE}/pytorch_lightning/.*": "wants PyTorch Lightning before 2.0, of which later ones have no IPU",
    "tutorials/tech_notes_code/available_memory/pytorch_demo.py": "downloads weights of torchvision",
    f"{POPVISION}/.*": "want libpvti, and split all 60,000 images of Fashion-MNIST",
    "tutorials/tutorials/pytorch_geometric/.*": GEOMETRIC,
}


_TIMED_OUT = 124
"""What coreutils' `timeout` returns."""


@dataclass(frozen=True)
class Ending:
    """How a program ended: None where it runs, else why not; and how long it took."""

    fault: str | None
    seconds: float


def run(program: Program, folder: Path, environment: dict[str, str], timeout: float) -> Ending:
    """Run one program in its folder, as a shell would."""
    command = f"timeout {timeout:.0f} python {program.launcher} {Path(program.path).name} {program.arguments}"
    if program.before:
        command = f"{program.before} && {command}"
    start = time.perf_counter()
    done = subprocess.run(
        command, shell=True, cwd=(folder / program.path).parent, env=environment, check=False,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    if done.returncode == _TIMED_OUT:
        return Ending(f"did not end in {timeout:.0f} s", seconds)
    if done.returncode:
        return Ending((done.stdout.strip().splitlines() or ["no output"])[-1], seconds)
    return Ending(_missing(program, done.stdout), seconds)


def _missing(program: Program, output: str) -> str | None:
    """What Graphcore's test of the program would not find in its output."""
    found = re.findall(program.prints, output)
    if not found:
        return f"did not print {program.prints!r}"
    if program.least and float(found[-1]) < program.least:
        return f"printed {found[-1]}, less than {program.least}"
    return None


def why_not_run(path: str) -> str | None:
    """Why a program is not run, or None."""
    return next((why for pattern, why in NOT_RUN.items() if re.fullmatch(pattern, path)), None)


def programs_of(folder: Path) -> Iterator[Program]:
    """Those of `PROGRAMS`, and every other program that imports poptorch."""
    yield from PROGRAMS
    for path in sorted((folder / "tutorials").rglob("*.py")):
        name = str(path.relative_to(folder))
        if "/test" in name or any(program.path == name for program in PROGRAMS):
            continue
        if re.search(r"^\s*(import|from) poptorch", path.read_text(), re.MULTILINE):
            yield Program(name)


def run_all(folder: Path, names: list[str], environment: dict[str, str], timeout: float) -> int:
    """Run the programs that are asked for and print the table; returns how many failed."""
    failed = 0
    for program in programs_of(folder):
        title = f"{program.path} {program.arguments}".strip()
        if names and not any(name in title for name in names):
            continue
        why = why_not_run(program.path)
        if why is not None:
            print(f"{title}: not run: {why}", flush=True)
            continue
        ending = run(program, folder, environment, timeout)
        failed += ending.fault is not None
        verdict = "runs" if ending.fault is None else f"FAILS: {ending.fault}"
        print(f"{title}: {verdict} ({ending.seconds:.0f} s)", flush=True)
    return failed


def main() -> int:
    """Runs the programs, prints the table, and returns 1 where one fails that should run."""
    parser = parser_of_places(__doc__, "graphcore/examples")
    parser.add_argument("--timeout", type=float, default=1200, help="seconds for a program")
    parser.add_argument("names", nargs="*", help="only programs with one of these in their path or arguments")
    arguments = parser.parse_args()
    place = arguments.environment.resolve()
    make_environment(place)
    beside = install_beside(place / "beside" / "tutorials", PACKAGES)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        unpack(arguments.clone, "tutorials", folder)
        write_datasets(folder / "home" / ".torch" / "datasets")
        environment = {**variables(place, beside), "HOME": str(folder / "home"), "MPLBACKEND": "Agg"}
        return 1 if run_all(folder, arguments.names, environment, arguments.timeout) else 0


if __name__ == "__main__":
    sys.exit(main())
