"""Fine-tunes on SQuAD: makes the task that train.py trains, evaluates it, and writes the answers.

predictions.json         the answer to each question, by id, as the official evaluation wants it
nbest_predictions.json   the best answers to each, with probabilities and logits
null_odds.json           SQuAD 2.0: how much no answer is preferred to the best answer
metrics.json             exact match and F1
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Dict, List, Sequence

import torch
from tokenizers import Tokenizer

from bert_ipu import custom_ops
from bert_ipu.backend import Backend
from bert_ipu.batch import SquadBatch, SquadOutput
from bert_ipu.checkpoint import load_initial_weights
from bert_ipu.config import SquadConfig, SquadDataConfig, describe_derived
from bert_ipu.distributed import World, join_world
from bert_ipu.errors import ConfigError, DataError, writing_to
from bert_ipu.pipeline import PipelinedModel, squad_model
from bert_ipu.records import atomic_file
from bert_ipu.squad_data import (
    Prediction,
    SquadExample,
    SquadWindows,
    best_answers,
    lost_answers,
    make_windows,
    read_squad,
)
from bert_ipu.squad_scoring import best_null_threshold, score_v1, score_v2
from bert_ipu.tokenizer import load_tokenizer
from bert_ipu.train import Evaluator, Task, train


def finetune(config: SquadConfig, backend: Backend, resume: bool = False, compile_only: bool = False) -> None:
    """Train on data.train_file, score data.eval_file, answer data.question: what there is of them.

    With `compile_only`, stop once the training is compiled, without data.
    Raises ConfigError: nothing to do, or settings that do not fit the files.  DataError: files that are
    missing, damaged or do not fit.
    """
    world = join_world(config.ipu.replication_factor)
    _say(world, f"backend           {backend.name}: {backend.reason}")
    libraries = custom_ops.load(config.custom_ops, backend)
    torch.manual_seed(config.train.seed)
    model = squad_model(config)
    if compile_only:
        train(Task(config, model, GeneratedWindows(config), 1, world, custom_ops=libraries), compile_only=True)
        return
    data = config.data
    if not (data.train_file or data.eval_file or data.question):
        raise ConfigError(
            "There is nothing to do. Set data.train_file to train, data.eval_file to predict and score, or "
            "data.question and data.context_file to have a question answered."
        )
    vocab_file = _vocab_file(config)
    tokenizer = load_tokenizer(vocab_file, config.model.vocab_size)
    held_out = _windows(data.eval_file, tokenizer, data, world) if data.eval_file else None
    asked = _question_windows(tokenizer, data) if data.question else None
    evaluation = Evaluation(config, model, world)
    if data.train_file:
        dataset = _windows(data.train_file, tokenizer, data, world)
        steps = total_steps(config, len(dataset))
        _say(world, describe_derived(config, steps))
        score = functools.partial(evaluation.score, held_out) if held_out is not None else None
        train(Task(config, model, dataset, steps, world, vocab_file, score, libraries), resume)
    else:
        _load_weights(config, model, world)
        if held_out is not None:
            _say(world, json.dumps(evaluation.score(held_out), indent=1))
    if held_out is not None:
        _say(world, f"predictions.json, nbest_predictions.json and metrics.json are in {config.train.output_dir}")
    if asked is not None:
        _say(world, f"\n{data.question}")
        for answer in evaluation.predict(asked)[0].n_best[:3]:
            _say(world, f"  {answer.probability:6.1%}  {answer.text}")


def total_steps(config: SquadConfig, windows: int) -> int:
    """Calls of the device in which all `windows` are seen at least `train.epochs` times."""
    return -(-config.train.epochs * windows // config.samples_per_step)


class Evaluation:
    """Predicts answers with the model in inference; scores and writes those to data.eval_file."""

    def __init__(self, config: SquadConfig, model: PipelinedModel, world: World) -> None:
        self._config, self._world = config, world
        self._evaluator = Evaluator(config, model, world)

    def predict(self, windows: SquadWindows, training: Any = None) -> List[Prediction]:
        """The best answers to each question of `windows`; `training` leaves the device meanwhile.

        Instances share the work, and all of them get all answers.
        """
        rows, world, data = self._evaluator.rows, self._world, self._config.data
        # The last rows of the last call are the first windows again, which fill it up.
        calls = -(-len(windows) // (rows * world.size))
        turns = range(world.rank, calls * world.size, world.size)
        batches = (windows.batch(range(turn * rows, (turn + 1) * rows)) for turn in turns)
        outputs = [
            torch.stack([output.start_logits, output.end_logits]).float()
            for output in self._evaluator.outputs(batches, training)
            if isinstance(output, SquadOutput)
        ]
        by_rank = torch.stack(world.gather(torch.stack(outputs)))  # [ranks, calls, 2, rows, S]
        start_logits, end_logits = by_rank.permute(2, 1, 0, 3, 4).flatten(1, 3)[:, : len(windows)]
        return best_answers(
            windows, start_logits, end_logits, data.n_best, data.max_answer_length, data.version_2
        )

    def score(self, windows: SquadWindows, training: Any = None) -> Dict[str, float]:
        """Predict, write answers and scores to train.output_dir, and return the scores.

        There are none where the file has no reference answers.
        """
        data = self._config.data
        predictions = self.predict(windows, training)
        final = final_answers(predictions, data)
        scores = scores_of(windows.examples, predictions, data)
        if self._world.is_first:
            folder = Path(self._config.train.output_dir)
            with writing_to(folder):
                folder.mkdir(parents=True, exist_ok=True)
                _write_json(folder / "predictions.json", final)
                n_best = {p.id: [answer._asdict() for answer in p.n_best] for p in predictions}
                _write_json(folder / "nbest_predictions.json", n_best)
                if data.version_2:
                    _write_json(folder / "null_odds.json", {p.id: p.null_score_diff for p in predictions})
                _write_json(folder / "metrics.json", scores)
        return scores


def final_answers(predictions: Sequence[Prediction], data: SquadDataConfig) -> Dict[str, str]:
    """The answer to each question, by id: with data.version_2 "" where none is preferred by the threshold."""
    return {
        prediction.id: ""
        if data.version_2 and prediction.null_score_diff > data.no_answer_threshold
        else prediction.best_text()
        for prediction in predictions
    }


def scores_of(
    examples: Sequence[SquadExample], predictions: Sequence[Prediction], data: SquadDataConfig
) -> Dict[str, float]:
    """The official scores of predictions; none where the examples have no reference answers."""
    references = {example.id: [answer.text for answer in example.answers] for example in examples}
    final = final_answers(predictions, data)
    if not any(references.values()):
        return {}
    if not data.version_2:
        return score_v1(references, final)
    best = best_null_threshold(
        references,
        {prediction.id: prediction.best_text() for prediction in predictions},
        {prediction.id: prediction.null_score_diff for prediction in predictions},
    )
    return {**score_v2(references, final), "best_f1": best.score, "best_f1_threshold": best.threshold}


def _question_windows(tokenizer: Tokenizer, data: SquadDataConfig) -> SquadWindows:
    """The windows of data.question over data.context_file; raises DataError where that cannot be read."""
    try:
        context = Path(data.context_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"data.context_file = {data.context_file!r} cannot be read ({error}). Name a plain text "
            "file that holds the answer to data.question."
        ) from error
    if not context.strip():
        raise DataError(f"data.context_file = {data.context_file} is empty. Name one with the answer in it.")
    example = SquadExample("question", data.question, context, ())
    return make_windows([example], tokenizer, data.sequence_length, data.doc_stride, data.max_query_length)


def _load_weights(config: SquadConfig, model: PipelinedModel, world: World) -> None:
    if not config.checkpoint.initial_weights:
        raise ConfigError(
            "There is nothing to train on and no model to evaluate. Set data.train_file, or set "
            "checkpoint.initial_weights to a fine-tuned model, such as a folder in a run's checkpoints/."
        )
    random = load_initial_weights(Path(config.checkpoint.initial_weights), model, config.model)
    if random:
        _say(world, f"{config.checkpoint.initial_weights} lacks {', '.join(random)}: they are random")


def _vocab_file(config: SquadConfig) -> Path:
    if config.data.vocab_file:
        return Path(config.data.vocab_file)
    if config.checkpoint.initial_weights:
        return Path(config.checkpoint.initial_weights) / "vocab.txt"
    raise ConfigError(
        "No vocabulary is given. Set data.vocab_file to a vocab.txt, or checkpoint.initial_weights to a "
        "model folder that has one."
    )


def _windows(path: str, tokenizer: Tokenizer, data: SquadDataConfig, world: World) -> SquadWindows:
    """The windows of a SQuAD file; says what they are and which answers are lost."""
    examples = read_squad(Path(path))
    unanswered = sum(not example.answers for example in examples)
    # Where all lack one, the answers are kept back, so that the file serves to predict but not to train.
    if unanswered and not data.version_2 and (path == data.train_file or unanswered < len(examples)):
        raise ConfigError(
            f"{unanswered:,} of the {len(examples):,} questions of {path} have no answer, as in SQuAD 2.0. "
            "Set data.version_2=true, or take a file of version 1.1."
        )
    windows = make_windows(examples, tokenizer, data.sequence_length, data.doc_stride, data.max_query_length)
    _say(world, f"{path}: {len(examples):,} questions in {len(windows):,} windows")
    lost = lost_answers(windows)
    if lost:
        _say(
            world,
            f"  {len(lost):,} answers cannot be given exactly by any choice of tokens, such as "
            f"{lost[0].answer!r}, found as {lost[0].found!r} ({lost[0].reason})",
        )
    return windows


class GeneratedWindows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Random windows of the configured shape, to compile without data."""

    def __init__(self, config: SquadConfig) -> None:
        self._config = config

    def __len__(self) -> int:
        return self._config.samples_per_step

    def batch(self, names: Sequence[int]) -> SquadBatch:
        """A batch of as many rows as there are names."""
        B, S = len(names), self._config.data.sequence_length
        ids = torch.randint(self._config.model.vocab_size, (B, S), dtype=torch.int32)
        ones, answers = torch.ones_like(ids), torch.randint(S, (2, B), dtype=torch.int32)
        return SquadBatch(ids, ones, ones, answers[0], answers[1])


def _write_json(path: Path, content: Any) -> None:
    with atomic_file(path) as file:
        file.write((json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())


def _say(world: World, text: str) -> None:
    if world.is_first:
        print(text, flush=True)
