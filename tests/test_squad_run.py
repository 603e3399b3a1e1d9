"""run_squad.py from the command line to the files it leaves, in the simulator on a tiny model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import run_squad
from bert_ipu.config import SquadConfig, SquadDataConfig, load_config
from bert_ipu.squad import final_answers, scores_of, total_steps
from bert_ipu.squad_data import Answer, NBestAnswer, Prediction, SquadExample

SAMPLE = Path(__file__).parents[1] / "data" / "sample"
TINY = [
    "model.vocab_size=2560", "model.hidden_size=32", "model.num_hidden_layers=1",
    "model.num_attention_heads=2", "model.max_position_embeddings=128", "model.hidden_dropout_prob=0.1",
    "ipu.layers_per_ipu=[1]", "ipu.gradient_accumulation=2", "ipu.precision=float32",
    "optim.loss_scaling=1", "optim.lr=0.01", "optim.accumulation_type=float32",
    f"data.vocab_file={SAMPLE / 'vocab.txt'}", "recorder.progress_bar=false",
]  # fmt: skip


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """The first article of the sample: six questions."""
    squad = json.loads((SAMPLE / "qa.json").read_text(encoding="utf-8"))
    squad["data"] = squad["data"][:1]
    return write_json(tmp_path / "qa.json", squad)


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def run(*overrides: str) -> int:
    return run_squad.main(["--config", "demo_tiny_128", *TINY, *overrides])


def test_trains_scores_and_answers(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    (tmp_path / "context.txt").write_text("A byte can hold 256 different values .", encoding="utf-8")
    status = run(
        f"data.train_file={questions}", f"data.eval_file={questions}", f"train.output_dir={out}",
        "train.epochs=3", "data.question=How many values can a byte hold?",
        f"data.context_file={tmp_path / 'context.txt'}")  # fmt: skip
    assert status == 0
    examples = json.loads(questions.read_text())["data"][0]["paragraphs"]
    ids = {question["id"] for paragraph in examples for question in paragraph["qas"]}
    predictions = json.loads((out / "predictions.json").read_text())
    n_best = json.loads((out / "nbest_predictions.json").read_text())
    assert set(predictions) == set(n_best) == ids
    for question_id, answers in n_best.items():
        assert answers[0]["text"] == predictions[question_id]
        assert sum(answer["probability"] for answer in answers) == pytest.approx(1)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["questions"] == len(ids)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 10))
    assert lines[-1] == {"kind": "eval", "step": 9, **metrics}
    assert "How many values can a byte hold?" in capsys.readouterr().out
    (checkpoint,) = (out / "checkpoints").iterdir()
    model = transformers.BertForQuestionAnswering.from_pretrained(checkpoint).eval()
    assert predictions == hugging_face_answers(model, questions, checkpoint)


def hugging_face_answers(
    model: transformers.BertForQuestionAnswering, questions: Path, checkpoint: Path
) -> dict[str, str]:
    """The best span of at most 30 tokens of each context, by Hugging Face's model and tokenizer."""
    tokenizer = transformers.BertTokenizerFast(vocab=str(checkpoint / "vocab.txt"), do_lower_case=True)
    answers = {}
    for article in json.loads(questions.read_text())["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                row = tokenizer(question["question"], paragraph["context"], return_tensors="pt")
                output = model(**row)
                context = [place for place, kind in enumerate(row.sequence_ids()) if kind == 1]
                spans = [(i, j) for i in context for j in context if i <= j < i + 30]
                start, end = max(
                    spans,
                    key=lambda span: (output.start_logits[0, span[0]] + output.end_logits[0, span[1]]).item(),
                )
                first, last = row.token_to_chars(start), row.token_to_chars(end)
                answers[question["id"]] = paragraph["context"][first.start : last.end]
    return answers


def test_resuming_after_any_step_changes_nothing(questions: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    common = [f"data.train_file={questions}", "train.epochs=1", "checkpoint.every_steps=1", "checkpoint.keep=9"]
    assert run(*common, f"train.output_dir={whole}") == 0
    steps = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert len(steps) == 3
    for last in (1, 2):
        killed = tmp_path / f"killed after step {last}"
        shutil.copytree(whole, killed)
        for step in steps[last:]:
            shutil.rmtree(killed / "checkpoints" / step)
        overrides = [*TINY, *common, f"train.output_dir={killed}"]
        assert run_squad.main(["--config", "demo_tiny_128", "--resume", *overrides]) == 0
        for path in sorted((whole / "checkpoints").glob("*/*.safetensors")):
            resumed = load_file(killed / path.relative_to(whole))
            for name, tensor in load_file(path).items():
                assert torch.equal(tensor, resumed[name]), f"{path.name}: {name}"
        assert metrics_without_times(whole) == metrics_without_times(killed)


def metrics_without_times(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "sequences_per_s")} for line in lines]


def test_version_2_leaves_unsure_questions_unanswered() -> None:
    examples = [
        SquadExample("sure", "?", "one two", (Answer("one", 0),)),
        SquadExample("unsure", "?", "one two", ()),
        SquadExample("wrong", "?", "one two", ()),
    ]
    answer = NBestAnswer("one", 0.7, 1.0, 1.0)
    predictions = [
        Prediction("sure", [answer], -3.0),
        Prediction("unsure", [answer], 2.0),
        Prediction("wrong", [answer], 0.5),
    ]
    data = SquadDataConfig(version_2=True, no_answer_threshold=1.0)
    assert final_answers(predictions, data) == {"sure": "one", "unsure": "", "wrong": "one"}
    scores = scores_of(examples, predictions, data)
    assert scores["f1"] == pytest.approx(200 / 3)
    assert scores["best_f1"] == 100
    assert -3.0 <= scores["best_f1_threshold"] < 0.5


def test_version_2_runs_to_the_end(questions: Path, tmp_path: Path) -> None:
    squad = json.loads(questions.read_text())
    squad["data"][0]["paragraphs"][0]["qas"][0]["answers"] = []
    write_json(questions, squad)
    out = tmp_path / "run"
    status = run(
        f"data.train_file={questions}", f"data.eval_file={questions}", f"train.output_dir={out}",
        "data.version_2=true", "train.epochs=1")  # fmt: skip
    assert status == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["has_answer_questions"], metrics["no_answer_questions"]) == (5, 1)
    assert set(json.loads((out / "null_odds.json").read_text())) == set(
        json.loads((out / "predictions.json").read_text())
    )


def test_steps_cover_every_window() -> None:
    config = load_config(SquadConfig, "demo_tiny_128", [*TINY, "train.epochs=3"])
    assert total_steps(config, 7) == 11  # 21 windows, 2 a step


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "There is nothing to do"),
        (["data.eval_file={questions}"], "no model to evaluate"),
        (["data.eval_file={questions}", "data.vocab_file="], "No vocabulary is given"),
        (["data.train_file={tmp}/missing.json"], "There is no SQuAD file"),
        (["data.train_file={questions}", "model.vocab_size=100"], "has 2,560 tokens, the model has 100"),
        (["data.train_file={unanswered}"], "1 of the 6 questions of .* have no answer"),
        (["data.train_file={blind}"], "6 of the 6 questions of .* have no answer"),
        (["data.train_file={questions}", "data.question=Why?", "data.context_file={empty}"], "is empty"),
        (["data.train_file={questions}", "data.question=Why?"], "data.context_file = ''"),
        (["data.train_file={questions}", "checkpoint.initial_weights={tmp}"], "is no model folder"),
    ],
)
def test_a_mistake_ends_in_one_message(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    squad = json.loads(questions.read_text())
    squad["data"][0]["paragraphs"][0]["qas"][0]["answers"] = []
    places = {"questions": questions, "tmp": tmp_path, "unanswered": write_json(tmp_path / "v2.json", squad)}
    for paragraph in squad["data"][0]["paragraphs"]:
        paragraph["qas"] = [{**question, "answers": []} for question in paragraph["qas"]]
    places["blind"], places["empty"] = write_json(tmp_path / "blind.json", squad), tmp_path / "empty.txt"
    places["empty"].touch()
    out = tmp_path / "run"
    status = run(f"train.output_dir={out}", *(override.format(**places) for override in overrides))
    error = capsys.readouterr().err
    assert status == 2
    assert "Traceback" not in error
    assert re.search(message, error), error
    assert not out.exists()


def test_compiles_without_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", "demo_tiny_128", "--compile-only", *TINY, f"train.output_dir={tmp_path}"]
    assert run_squad.main(arguments) == 0
    assert "compiled in" in capsys.readouterr().out
