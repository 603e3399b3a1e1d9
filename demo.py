"""The whole way in a few minutes: records, pretraining until memorised, fine-tuning, an answer.

    python demo.py [OUTPUT_FOLDER]

Runs the same commands a user would, one after the other, on the sample corpus in data/sample/, and says
where everything was written.  Stops with a message where a step falls short of what it must reach.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
SAMPLE = ROOT / "data" / "sample"
QUESTION = "How many different values does a byte hold?"
"""About data/sample/context.txt; the training questions word it otherwise."""
MLM_ACCURACY, NSP_ACCURACY = 0.99, 1.0


def main(arguments: list[str]) -> int:
    """Run the demo into a fresh folder; returns 0 where all went as it must."""
    out = Path(arguments[0]) if arguments else ROOT / "demo_out"
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    prepare(out / "records")
    pretrain(out)
    reached = memorised(out / "pretraining" / "metrics.jsonl")
    fine_tune(out)
    print(f"\nThe demo took {time.perf_counter() - started:.0f} s and wrote")
    for folder, what in {
        "records": "the sample corpus as records",
        "pretraining": "metrics.jsonl and checkpoints of pretraining",
        "squad": "metrics, checkpoints and predictions of fine-tuning",
    }.items():
        print(f"  {out / folder}  {what}")
    return 0 if reached else 1


def prepare(records: Path) -> None:
    """Turn the sample corpus into records."""
    run("Preparing the sample corpus", "data/prepare_wikipedia.py", str(SAMPLE / "corpus.txt"),
        "--vocab", str(SAMPLE / "vocab.txt"), "--out", str(records), "--sequence-length", "128")  # fmt: skip


def pretrain(out: Path) -> None:
    """Pretrain on four simulated IPUs with masks held fixed."""
    run("Pretraining on 4 simulated IPUs", "run_pretraining.py", "--config", "demo",
        f"data.train_data={out / 'records'}", f"train.output_dir={out / 'pretraining'}")  # fmt: skip


def memorised(metrics: Path) -> bool:
    """Whether the last steps predict every masked token and every next sentence; says so."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    last = [line for line in lines if "mlm_accuracy" in line][-1]
    reached = last["mlm_accuracy"] >= MLM_ACCURACY and last["nsp_accuracy"] >= NSP_ACCURACY
    verdict = "memorised" if reached else "NOT memorised"
    print(f"The sample is {verdict}: MLM accuracy {last['mlm_accuracy']:.1%}, NSP {last['nsp_accuracy']:.1%}")
    return reached


def fine_tune(out: Path) -> None:
    """Fine-tune the pretrained weights on the sample's questions, and ask one."""
    weights = max((out / "pretraining" / "checkpoints").glob("step_*"))
    run("Fine-tuning on the sample's questions", "run_squad.py", "--config", "demo",
        f"checkpoint.initial_weights={weights}", f"train.output_dir={out / 'squad'}",
        f"data.question={QUESTION}")  # fmt: skip


def run(title: str, script: str, *arguments: str) -> None:
    """Run one of our scripts, showing the command; ends the demo where it fails."""
    print(f"\n== {title}\n$ python {script} {' '.join(arguments)}", flush=True)
    status = subprocess.run([sys.executable, str(ROOT / script), *arguments], cwd=ROOT, check=False).returncode
    if status:
        sys.exit(f"demo: {script} ended with status {status}; see its message above")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
