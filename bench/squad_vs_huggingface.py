"""Fine-tunes the same weights on real SQuAD with our program and with Hugging Face's model in a torch loop.

    python bench/squad_vs_huggingface.py [--train-questions 800 --dev-questions 300 --seeds 1 2 3 ...]

Both start from the same weights, see the same windows in the same order without dropout, and have the same
optimizer and schedule: torch.optim.AdamW and transformers' linear schedule on one side, ours in the simulator
on the other.  Prints the largest difference of the loss over the steps, and exact match and F1 of both for
each seed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))

from bert_ipu.backend import activate
from bert_ipu.config import SquadConfig, config_from_values
from bert_ipu.recorder import read_metrics
from bert_ipu.sampler import StreamSampler
from bert_ipu.squad_data import SquadWindows, best_answers, make_windows, read_squad
from bert_ipu.squad_scoring import score_v1
from bert_ipu.tokenizer import load_tokenizer

SHARED = Path(os.environ.get("BERT_IPU_SHARED", Path(__file__).parents[2] / "shared")) / "data"
MODEL = SHARED / "models" / "all-MiniLM-L6-v2"
COMPARED_STEPS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--train-questions", type=int, default=800, help="0: all 4,370")
    parser.add_argument("--dev-questions", type=int, default=300, help="0: all 5,397 of dev half a")
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8, help="a multiple of 4, the micro-batches")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        train = subset(
            SHARED / "squad" / "train-v1.1-first12articles.json", arguments.train_questions, Path(folder)
        )
        dev = subset(SHARED / "squad" / "dev-v1.1-half_a.json", arguments.dev_questions, Path(folder))
        results = []
        for seed in arguments.seeds:
            config = configuration(arguments, train, dev, Path(folder) / f"seed{seed}", seed)
            results.append(compare(config))
    for system in ("ours", "Hugging Face"):
        mean = {name: sum(r[system][name] for r in results) / len(results) for name in ("exact_match", "f1")}
        print(
            f"{system:>13}: mean of {len(results)} seeds: EM {mean['exact_match']:.2f}, F1 {mean['f1']:.2f}"
        )


def subset(path: Path, questions: int, folder: Path) -> Path:
    """A SQuAD file with about so many questions, from paragraphs spread evenly over those of `path`."""
    squad = json.loads(path.read_text(encoding="utf-8"))
    paragraphs = [paragraph for article in squad["data"] for paragraph in article["paragraphs"]]
    total = sum(len(paragraph["qas"]) for paragraph in paragraphs)
    every = max(1, total // questions) if questions else 1
    squad["data"] = [{"title": "", "paragraphs": paragraphs[::every]}]
    small = folder / path.name
    small.write_text(json.dumps(squad), encoding="utf-8")
    return small


def configuration(arguments: argparse.Namespace, train: Path, dev: Path, out: Path, seed: int) -> SquadConfig:
    """Our run: two IPUs in float32, no dropout."""
    shape = json.loads((MODEL / "config.json").read_text())
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return config_from_values(
        SquadConfig,
        {
            **{f"model.{name}": shape[name] for name in (*names, "layer_norm_eps")},
            "model.hidden_dropout_prob": 0.0,
            "model.attention_probs_dropout_prob": 0.0,
            "data.train_file": str(train),
            "data.eval_file": str(dev),
            "data.sequence_length": arguments.sequence_length,
            "data.doc_stride": arguments.sequence_length // 3,
            "data.max_query_length": arguments.sequence_length // 3,
            "ipu.layers_per_ipu": [3, 3],
            "ipu.precision": "float32",
            "ipu.micro_batch_size": arguments.batch_size // 4,
            "ipu.gradient_accumulation": 4,
            "optim.lr": arguments.lr,
            "optim.schedule": "linear",
            "optim.warmup_fraction": 0.1,
            "optim.weight_decay": 0.01,
            "optim.accumulation_type": "float32",
            "train.epochs": arguments.epochs,
            "train.seed": seed,
            "train.output_dir": str(out),
            "checkpoint.initial_weights": str(MODEL),
            "recorder.progress_bar": False,
        },
    )


def compare(config: SquadConfig) -> dict[str, Any]:
    """Run both, print what differs, and return the scores of each."""
    backend = activate(config.ipu)
    from bert_ipu import squad

    started = time.perf_counter()
    squad.finetune(config, backend)
    our_seconds = time.perf_counter() - started
    out = Path(config.train.output_dir)
    ours = [line["loss"] for line in read_metrics(out / "metrics.jsonl", "train")]
    our_scores = json.loads((out / "metrics.json").read_text())

    started = time.perf_counter()
    theirs, their_scores = hugging_face(config)
    seconds = time.perf_counter() - started
    differences = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    print(
        f"seed {config.train.seed}: loss {ours[0]:.3f} to {ours[-1]:.3f}; largest difference "
        f"{max(differences[:COMPARED_STEPS]):.1e} in the first {min(len(ours), COMPARED_STEPS)} steps, "
        f"{max(differences):.1e} in all {len(ours)}"
    )
    for name, system, time_s in (("ours", our_scores, our_seconds), ("Hugging Face", their_scores, seconds)):
        print(
            f"{name:>13}: EM {system['exact_match']:.2f}, F1 {system['f1']:.2f} in {time_s:.0f} s", flush=True
        )
    return {"ours": our_scores, "Hugging Face": their_scores}


def hugging_face(config: SquadConfig) -> tuple[list[float], dict[str, float]]:
    """Losses of a plain torch loop over Hugging Face's model from our start, and its scores on dev."""
    tokenizer = load_tokenizer(MODEL / "vocab.txt")
    data = config.data
    training, dev = (
        make_windows(
            read_squad(Path(path)), tokenizer, data.sequence_length, data.doc_stride, data.max_query_length
        )
        for path in (data.train_file, data.eval_file)
    )
    model = starting_model(config)
    named = list(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for _, p in named if p.dim() == 1], "weight_decay": 0.0},
            {"params": [p for _, p in named if p.dim() > 1], "weight_decay": config.optim.weight_decay},
        ],
        lr=config.optim.lr,
        eps=config.optim.eps,
    )
    batch_size = config.global_batch_size
    steps = -(-config.train.epochs * len(training) // batch_size)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, config.warmup_steps(steps), steps)
    sampler = StreamSampler(len(training), config.train.seed, batch_size, steps)
    losses = []
    for step in range(steps):
        output = model(**arguments_of(training, sampler.step_samples(step)))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(output.loss.item())
    return losses, scores(model, dev, config)


def starting_model(config: SquadConfig) -> transformers.BertForQuestionAnswering:
    """Hugging Face's model with the weights that our run starts from, its random head included."""
    from bert_ipu.checkpoint import load_initial_weights
    from bert_ipu.pipeline import squad_model

    torch.manual_seed(config.train.seed)
    ours = squad_model(config)
    load_initial_weights(MODEL, ours, config.model)
    model = transformers.BertForQuestionAnswering.from_pretrained(
        MODEL, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="eager"
    )
    model.load_state_dict(ours.model.state_dict())
    return model.train()


def arguments_of(windows: SquadWindows, names: Any) -> dict[str, torch.Tensor]:
    return {name: field.long() for name, field in windows.batch(names)._asdict().items()}


def scores(
    model: transformers.BertForQuestionAnswering, windows: SquadWindows, config: SquadConfig
) -> dict[str, float]:
    outputs = []
    with torch.inference_mode():
        for first in range(0, len(windows), 32):
            outputs.append(model(**arguments_of(windows, range(first, min(first + 32, len(windows))))))
    data = config.data
    predictions = best_answers(
        windows,
        torch.cat([output.start_logits for output in outputs]),
        torch.cat([output.end_logits for output in outputs]),
        data.n_best,
        data.max_answer_length,
        version_2=False,
    )
    references = {example.id: [answer.text for answer in example.answers] for example in windows.examples}
    return score_v1(references, {prediction.id: prediction.best_text() for prediction in predictions})


if __name__ == "__main__":
    main()
