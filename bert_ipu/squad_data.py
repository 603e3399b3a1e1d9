"""SQuAD: questions and contexts to windows of tokens, and a model's logits back to answers.

A context that is too long for the model is cut into overlapping windows, each behind the whole
question: [CLS] question [SEP] window [SEP].  Every token keeps the characters of the context it was
made from, so that an answer is found in the tokens, and tokens are turned back into the very text of
the context.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple, Union

import numpy as np
import torch
from tokenizers import Tokenizer

from bert_ipu.batch import SquadBatch
from bert_ipu.errors import DataError
from bert_ipu.tokenizer import SpecialTokens, special_tokens


class Answer(NamedTuple):
    """A piece of the context: its text and the index of its first character."""

    text: str
    start: int


class SquadExample(NamedTuple):
    """One question about one context; no answers where there is none (SQuAD 2.0) or none is known."""

    id: str
    question: str
    context: str
    answers: Tuple[Answer, ...]


class LostAnswer(NamedTuple):
    """An answer that the tokens of its windows do not give back letter by letter, and why."""

    id: str
    answer: str
    found: str
    reason: str


class NBestAnswer(NamedTuple):
    """One of the best answers to a question, "" for no answer; the probability is among these answers."""

    text: str
    probability: float
    start_logit: float
    end_logit: float


class Prediction(NamedTuple):
    """The best answers to one question, best first, and what speaks for none."""

    id: str
    n_best: List[NBestAnswer]
    null_score_diff: float
    """Score of no answer less that of the best answer."""

    def best_text(self) -> str:
        """The best answer that is one; "" only where the context has no tokens."""
        return next((answer.text for answer in self.n_best if answer.text), "")


def read_squad(path: Path) -> List[SquadExample]:
    """All questions of a SQuAD 1.1 or 2.0 file, in its order.

    Raises DataError: the file is missing or is not in SQuAD's format, two questions have the same id,
    or an answer is not what stands in the context at its offset.
    """
    try:
        with open(path, encoding="utf-8") as file:
            articles = json.load(file)["data"]
        examples = [example for article in articles for example in _article_examples(path, article)]
    except FileNotFoundError:
        raise DataError(f"There is no SQuAD file {path}. Name a file in SQuAD's JSON format.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as JSON: {error}. Is it cut off or no SQuAD file? Fetch it again."
        ) from error
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is JSON but not in SQuAD's format ({type(error).__name__}: {error}). Needed: "
            "data[].paragraphs[] with context and qas[], each with id, question and answers[]."
        ) from error
    if not examples:
        raise DataError(f"{path} has no questions; at least one is needed.")
    _check_ids(path, examples)
    return examples


def _article_examples(path: Path, article: Dict[str, Any]) -> Iterator[SquadExample]:
    for paragraph in article["paragraphs"]:
        context = paragraph["context"]
        for question in paragraph["qas"]:
            # SQuAD 2.0 keeps what annotators found plausible under another key; these are no answers.
            answers = [
                Answer(answer["text"], answer["answer_start"]) for answer in question.get("answers", [])
            ]
            for answer in answers:
                _check_answer(path, question["id"], context, answer)
            for text in (question["question"], context):
                if not isinstance(text, str):
                    raise TypeError(f"question {question['id']} has {text!r} where a text is needed")
            yield SquadExample(str(question["id"]), question["question"], context, tuple(answers))


def _check_answer(path: Path, question_id: str, context: str, answer: Answer) -> None:
    if not answer.text:
        raise DataError(
            f"{path}, question {question_id}: an answer is empty. A question without an answer has an empty "
            "list of answers: remove this one."
        )
    found = context[max(0, answer.start) : answer.start + len(answer.text)]
    if answer.start < 0 or found != answer.text:
        at = context.find(answer.text)
        advice = f"it first stands at {at}" if at >= 0 else "it stands nowhere in the context"
        raise DataError(
            f"{path}, question {question_id}: the answer {answer.text!r} should stand at character "
            f"{answer.start} of its context, but there stands {found!r}; {advice}. Offsets count Unicode "
            "characters from 0: correct answer_start or the text."
        )


def _check_ids(path: Path, examples: Sequence[SquadExample]) -> None:
    seen = set()
    for example in examples:
        if example.id in seen:
            raise DataError(
                f"{path} has two questions with the id {example.id!r}. Predictions are kept by id: give each "
                "its own."
            )
        seen.add(example.id)


@dataclass(frozen=True, eq=False)
class SquadWindows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The windows of all questions of a file, as a data set of rows for SquadBatch.

    W windows, E examples (questions).  Token ids are kept once for each question and each context;
    a row is put together when it is read, which takes some microseconds and saves gigabytes.
    """

    examples: Sequence[SquadExample]
    sequence_length: int
    special: SpecialTokens
    question_ids: Sequence[np.ndarray]
    """E arrays: token ids of each question."""
    context_ids: Sequence[np.ndarray]
    """E arrays [T]: token ids of each whole context."""
    context_offsets: Sequence[np.ndarray]
    """E arrays [T, 2]: first character of each token of the context and the one after its last."""
    example_index: np.ndarray
    """[W]: the example of each window; the windows of an example follow each other."""
    first_token: np.ndarray
    """[W]: the context token with which the window begins."""
    token_count: np.ndarray
    """[W]: context tokens in the window."""
    start_positions: np.ndarray
    """[W]: position in the row of the first answer's first token; 0 where the window lacks some of it."""
    end_positions: np.ndarray
    """[W]: position of its last token."""

    def __len__(self) -> int:
        return len(self.example_index)

    def batch(self, names: Union[np.ndarray, Sequence[int]]) -> SquadBatch:
        """The rows, [B, S] and [B] int32, of the named windows, in this order.

        A sampler names window i of epoch e by e * len(self) + i; windows are the same in every epoch.
        """
        windows = np.asarray(names, np.int64) % len(self)
        input_ids = np.full((len(windows), self.sequence_length), self.special.pad, np.int32)
        context_starts = np.array([self.context_start(window) for window in windows])[:, None]
        lengths = context_starts + self.token_count[windows][:, None] + 1
        for row, window, begin, length in zip(input_ids, windows, context_starts[:, 0], lengths[:, 0]):
            example, first = self.example_index[window], self.first_token[window]
            row[0] = self.special.cls
            row[1 : begin - 1] = self.question_ids[example]
            row[begin - 1] = self.special.sep
            row[begin : length - 1] = self.context_ids[example][first : first + self.token_count[window]]
            row[length - 1] = self.special.sep
        places = np.arange(self.sequence_length)
        in_row = places < lengths
        return SquadBatch(
            input_ids=torch.from_numpy(input_ids),
            attention_mask=torch.from_numpy(in_row.astype(np.int32)),
            token_type_ids=torch.from_numpy((in_row & (places >= context_starts)).astype(np.int32)),
            start_positions=torch.from_numpy(self.start_positions[windows].astype(np.int32)),
            end_positions=torch.from_numpy(self.end_positions[windows].astype(np.int32)),
        )

    def __getitems__(self, names: List[int]) -> SquadBatch:
        return self.batch(names)

    def __getitem__(self, name: int) -> SquadBatch:
        return SquadBatch(*(field[0] for field in self.batch([name])))

    def context_start(self, window: int) -> int:
        """Position in the row of the window's first context token: after [CLS], question and [SEP]."""
        return len(self.question_ids[self.example_index[window]]) + 2

    def text(self, window: int, start: int, end: int) -> str:
        """The text of the context between two positions of the window's row, both inclusive."""
        example = self.example_index[window]
        offsets = self.context_offsets[example]
        shift = self.first_token[window] - self.context_start(window)
        first, last = int(offsets[start + shift, 0]), int(offsets[end + shift, 1])
        context: str = self.examples[example].context
        return context[first:last]


def make_windows(
    examples: Sequence[SquadExample],
    tokenizer: Tokenizer,
    sequence_length: int,
    doc_stride: int,
    max_query_length: int,
) -> SquadWindows:
    """Cut the contexts of all questions into windows; neighbouring windows share `doc_stride` tokens.

    Questions are cut after `max_query_length` tokens.  Requires sequence_length - max_query_length - 3,
    the least room for a context, to be more than `doc_stride` (the configuration is checked for it).
    """
    room_at_least = sequence_length - max_query_length - 3
    assert room_at_least > doc_stride, f"windows of {room_at_least} tokens cannot overlap by {doc_stride}"
    questions = tokenizer.encode_batch([example.question for example in examples])
    # Some five questions share a context, which is tokenised once.
    texts = list(dict.fromkeys(example.context for example in examples))
    contexts = {
        text: (np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int32).reshape(-1, 2))
        for text, encoding in zip(texts, tokenizer.encode_batch(texts))
    }
    question_ids = [np.array(encoding.ids[:max_query_length], np.int32) for encoding in questions]
    context_ids, context_offsets = zip(*(contexts[example.context] for example in examples))

    question_lengths = np.array([len(ids) for ids in question_ids])
    context_lengths = np.array([len(ids) for ids in context_ids])
    example_index, first_token, token_count = _cut(
        context_lengths, sequence_length - 3 - question_lengths, doc_stride
    )
    spans = np.array([_answer_tokens(*pair) for pair in zip(examples, context_offsets)])[example_index]
    whole = (spans[:, 0] >= first_token) & (spans[:, 1] < first_token + token_count)
    shift = question_lengths[example_index] + 2 - first_token
    return SquadWindows(
        examples=examples,
        sequence_length=sequence_length,
        special=special_tokens(tokenizer),
        question_ids=question_ids,
        context_ids=context_ids,
        context_offsets=context_offsets,
        example_index=example_index,
        first_token=first_token,
        token_count=token_count,
        start_positions=np.where(whole, spans[:, 0] + shift, 0),
        end_positions=np.where(whole, spans[:, 1] + shift, 0),
    )


def _cut(lengths: np.ndarray, room: np.ndarray, doc_stride: int) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Example, first token and token count, [W] each, of the windows over [E] contexts with [E] room."""
    step = room - doc_stride
    windows_of = 1 + np.maximum(0, -(-(lengths - room) // step))
    example_index = np.repeat(np.arange(len(lengths)), windows_of)
    first_window_of = np.cumsum(windows_of) - windows_of
    first_token = (np.arange(len(example_index)) - first_window_of[example_index]) * step[example_index]
    token_count = np.minimum(room[example_index], lengths[example_index] - first_token)
    return example_index, first_token, token_count


def _answer_tokens(example: SquadExample, offsets: np.ndarray) -> Tuple[int, int]:
    """First and last context token that the example's first answer touches; (-1, -1) where there is none."""
    if not example.answers:
        return -1, -1
    text, start = example.answers[0]
    first = np.searchsorted(offsets[:, 1], start, side="right")
    last = np.searchsorted(offsets[:, 0], start + len(text), side="left") - 1
    return (int(first), int(last)) if first <= last else (-1, -1)


def lost_answers(windows: SquadWindows) -> List[LostAnswer]:
    """First answers of the examples that the tokens do not give back exactly, with the reason.

    Training aims at the nearest tokens of such an answer, or at [CLS] where no window holds it whole.
    """
    in_a_window = np.zeros(len(windows.examples), bool)
    in_a_window[windows.example_index[windows.start_positions > 0]] = True
    lost = []
    for index, example in enumerate(windows.examples):
        if not example.answers:
            continue
        answer, offsets = example.answers[0], windows.context_offsets[index]
        first, last = _answer_tokens(example, offsets)
        found = example.context[offsets[first, 0] : offsets[last, 1]] if in_a_window[index] else ""
        if found != answer.text:
            lost.append(LostAnswer(example.id, answer.text, found, _reason_lost(answer.text, found)))
    return lost


def _reason_lost(answer: str, found: str) -> str:
    if not found:
        return "no window holds the whole answer"
    if answer in found:
        return "begins or ends inside a token"
    return "begins or ends with characters that belong to no token"


def best_answers(
    windows: SquadWindows,
    start_logits: torch.Tensor,
    end_logits: torch.Tensor,
    n_best: int,
    max_answer_length: int,
    version_2: bool,
) -> List[Prediction]:
    """The `n_best` answers to each example, from the logits of all windows, [W, S] both.

    An answer is a span of the context of at most `max_answer_length` tokens; its score is the sum of
    the logits of its first and its last token.  Of equal texts only the best is kept.  With `version_2`
    no answer, "", is one of the candidates; its score is that of both positions at [CLS].
    """
    start_logits, end_logits = start_logits.double().cpu(), end_logits.double().cpu()
    candidates: List[Dict[str, Tuple[float, float]]] = [{} for _ in windows.examples]
    nulls = [(np.inf, np.inf)] * len(windows.examples)
    for window, (start_null, end_null) in enumerate(
        zip(start_logits[:, 0].tolist(), end_logits[:, 0].tolist())
    ):
        # A window that does not hold the answer rightly points at [CLS], so the least sure of them counts.
        example = windows.example_index[window]
        nulls[example] = min(nulls[example], (start_null, end_null), key=sum)
    for window, start, end in _best_spans(windows, start_logits, end_logits, n_best, max_answer_length):
        found = candidates[windows.example_index[window]]
        text = windows.text(window, start, end)
        logits = float(start_logits[window, start]), float(end_logits[window, end])
        if text not in found or sum(logits) > sum(found[text]):
            found[text] = logits
    predictions = []
    for example, found, null in zip(windows.examples, candidates, nulls):
        best = max(map(sum, found.values()), default=-np.inf)
        ranked = {**found, "": null} if version_2 or not found else found
        predictions.append(Prediction(example.id, _ranked(ranked, n_best), sum(null) - best))
    return predictions


def _best_spans(
    windows: SquadWindows, start_logits: torch.Tensor, end_logits: torch.Tensor, n_best: int, max_length: int
) -> Iterator[Tuple[int, int, int]]:
    """Window, first and last position of the `n_best` spans with the highest scores of each window."""
    positions = torch.arange(windows.sequence_length)
    first = torch.tensor([windows.context_start(window) for window in range(len(windows))])[:, None]
    in_context = (positions >= first) & (positions < first + torch.from_numpy(windows.token_count)[:, None])
    start_logits = start_logits.masked_fill(~in_context, -torch.inf)
    end_logits = end_logits.masked_fill(~in_context, -torch.inf)
    padded_end = torch.nn.functional.pad(end_logits, (0, max_length - 1), value=-torch.inf)
    for begin in range(0, len(windows), 128):  # 128 windows of 384 tokens have 12 MB of scores
        chunk = slice(begin, begin + 128)
        # [w, S, L]: the score of the span that begins at position s and has l + 1 tokens.
        scores = start_logits[chunk, :, None] + padded_end[chunk].unfold(1, max_length, 1)
        best = scores.flatten(1).topk(min(n_best, scores[0].numel()))
        for window, (values, spans) in enumerate(zip(best.values.tolist(), best.indices.tolist()), begin):
            for value, span in zip(values, spans):
                start, extra = divmod(span, max_length)
                if value > -np.inf:
                    yield window, start, start + extra


def _ranked(candidates: Dict[str, Tuple[float, float]], n_best: int) -> List[NBestAnswer]:
    """The best of the candidates (text to start and end logit), with probabilities by softmax over them."""
    best = sorted(candidates.items(), key=lambda item: -sum(item[1]))[:n_best]
    probabilities = torch.tensor([sum(logits) for _, logits in best], dtype=torch.float64).softmax(0).tolist()
    return [NBestAnswer(text, p, *logits) for (text, logits), p in zip(best, probabilities)]
