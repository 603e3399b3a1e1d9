"""Pretrains a small BERT on real Wikipedia and holds its masked-LM loss against the unigram cross-entropy.

    python bench/wikipedia_pretraining.py [INPUT... --vocab VOCAB] [section.key=value ...]

Prepares records of INPUT (a dump, WikiExtractor's output, text; as data/prepare_wikipedia.py takes them) with
held-out rows, trains configs/pretraining/wikipedia_small.yaml (4 layers of width 256 on 4 simulated IPUs), and
prints the curve of the held-out loss beside what a model scores that only knows how frequent each token is:
the cross-entropy of the same masked tokens under the training text's token frequencies (add-one smoothing, so
that a token never seen has a probability).  A model below that line has learned from context.

Run again after an interruption, it goes on.  Writes curve.png where matplotlib is installed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bert_ipu.batch import IGNORED_LABEL
from bert_ipu.config import PretrainConfig, load_config
from bert_ipu.errors import ConfigError
from bert_ipu.pretraining_data import open_pretraining_data
from bert_ipu.recorder import METRICS_NAME, read_metrics
from bert_ipu.records import MANIFEST_NAME, Records

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("BERT_IPU_SHARED", ROOT.parent / "shared")) / "data"
WIKIPEDIA = SHARED / "wikipedia"
INPUTS = [
    WIKIPEDIA / "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.xml.bz2",
    WIKIPEDIA / "wikiextractor_en_AA_00-51.tar.xz",
]
NAME = "wikipedia_small"
FIRST_WORD_ID = 999
"""Ids below are [PAD], [UNK], [CLS]..., which are never masked."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("inputs", nargs="*", help="texts, and settings as section.key=value")
    parser.add_argument("--vocab", type=Path, default=SHARED / "models" / "all-MiniLM-L6-v2" / "vocab.txt")
    arguments = parser.parse_intermixed_args()
    overrides = [given for given in arguments.inputs if "=" in given]
    inputs = [Path(given) for given in arguments.inputs if "=" not in given] or INPUTS
    try:
        config = load_config(PretrainConfig, NAME, overrides)
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    prepare(config, inputs, arguments.vocab)
    baseline = unigram_cross_entropy(config)
    print(f"unigram cross-entropy of the held-out masked tokens: {baseline:.3f} nats a token")
    output = Path(config.train.output_dir)
    resume = ["--resume"] if any(output.glob("checkpoints/step_*")) else []
    command = [sys.executable, "run_pretraining.py", "--config", NAME, *overrides, *resume]
    before = os.times()
    run(command)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    report(output, config, baseline)
    print(f"training took {after.elapsed - before.elapsed:.0f} s, {cpu:.0f} CPU-seconds")


def prepare(config: PretrainConfig, inputs: list[Path], vocab: Path) -> None:
    """Records with every 20th MB held out, unless they are there already."""
    records = Path(config.data.train_data)
    if (records / MANIFEST_NAME).exists():
        return
    command = [sys.executable, "data/prepare_wikipedia.py", *map(str, inputs), "--vocab", str(vocab)]
    length = str(config.data.sequence_length)
    command += ["--out", str(records), "--sequence-length", length, "--held-out", "20"]
    run(command)


def run(command: list[str]) -> None:
    """Run one of our scripts; ends with its status where it fails, as it has said why."""
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if status:
        sys.exit(status)


def unigram_cross_entropy(config: PretrainConfig) -> float:
    """Nats per masked token of the evaluation's rows, under the frequencies of tokens in the training rows."""
    records = Records(Path(config.data.train_data))
    counts = np.ones(config.model.vocab_size)
    for first in range(0, len(records), 4096):
        rows = records.read(np.arange(first, min(first + 4096, len(records))))
        counts += np.bincount(rows.token_ids.reshape(-1), minlength=len(counts))
    counts[:FIRST_WORD_ID] = 1
    probabilities = counts / counts.sum()
    data = config.data
    held_out = open_pretraining_data(
        [Path(data.eval_data)],
        data.sequence_length,
        data.mask_tokens,
        config.model.vocab_size,
        config.train.seed,
        data.whole_word_masking,
        fixed_masks=True,
    )
    labels = held_out.batch(range(min(config.train.eval_rows, len(held_out)))).masked_lm_labels.numpy()
    return float(-np.log(probabilities[labels[labels != IGNORED_LABEL]]).mean())


def report(output: Path, config: PretrainConfig, baseline: float) -> None:
    """Print the held-out curve, and draw it."""
    evaluations = read_metrics(output / METRICS_NAME, "eval")
    print(f"{'sequences':>10} {'MLM loss':>9} {'unigram':>8} {'MLM acc':>8} {'NSP acc':>8}")
    for line in evaluations:
        print(
            f"{line['step'] * config.samples_per_step:>10,} {line['mlm_loss']:>9.3f} {baseline:>8.3f} "
            f"{line['mlm_accuracy']:>8.3f} {line['nsp_accuracy']:>8.3f}"
        )
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no curve.png: matplotlib is not installed")
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    sequences = [line["step"] * config.samples_per_step for line in evaluations]
    axes.plot(sequences, [line["mlm_loss"] for line in evaluations], label="BERT, 4 layers of width 256")
    axes.axhline(baseline, linestyle="--", color="gray", label="token frequencies only")
    axes.set(xlabel="sequences of 128 seen", ylabel="held-out masked-LM loss, nats")
    axes.legend()
    figure.savefig(output / "curve.png", dpi=120)
    print(f"the curve: {output / 'curve.png'}")


if __name__ == "__main__":
    main()
