"""Exact match and F1 of predicted answers, by the rules of SQuAD's official evaluations 1.1 and 2.0.

The rules (Rajpurkar et al. 2016, arXiv:1606.05250; 2018, arXiv:1806.03822): answers are compared
without case, punctuation, articles and superfluous white space; F1 is that of the two bags of words;
of several reference answers the best counts.  Version 2.0 adds questions without an answer, to which
the right prediction is the empty string.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import Callable, Dict, Iterable, Mapping, NamedTuple, Sequence

References = Mapping[str, Sequence[str]]
"""Reference answers by question id; none where a question has no answer (SQuAD 2.0)."""

NO_ANSWER = [""]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


class ThresholdScore(NamedTuple):
    """The best F1 that a threshold can give, in percent, and that threshold."""

    score: float
    threshold: float


def normalize_answer(text: str) -> str:
    """The answer in lower case, without punctuation, articles and superfluous white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, reference: str) -> float:
    """1 where both answers are the same after normalisation, else 0."""
    return float(normalize_answer(prediction) == normalize_answer(reference))


def f1(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the words of both answers; 0 where they share none."""
    predicted = normalize_answer(prediction).split()
    expected = normalize_answer(reference).split()
    shared = sum((Counter(predicted) & Counter(expected)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(predicted), shared / len(expected)
    return 2 * precision * recall / (precision + recall)


def score_v1(references: References, predictions: Mapping[str, str]) -> Dict[str, float]:
    """SQuAD 1.1: exact match and F1 in percent over all questions.

    A question without a prediction scores 0, as in the official evaluation.
    """
    exact = _best_of_references(exact_match, references, predictions)
    f1_scores = _best_of_references(f1, references, predictions)
    return {
        "exact_match": _percent(exact.values()),
        "f1": _percent(f1_scores.values()),
        "questions": len(references),
        "unanswered": sum(question_id not in predictions for question_id in references),
    }


def score_v2(references: References, predictions: Mapping[str, str]) -> Dict[str, float]:
    """SQuAD 2.0: exact match and F1 in percent, over all questions and over those with and without an answer.

    A question with no reference answer is answered rightly by the empty string.  A question without
    a prediction scores 0 (the official evaluation cannot score a file that leaves one out).
    """
    references = {question_id: _or_no_answer(texts) for question_id, texts in references.items()}
    exact = _best_of_references(exact_match, references, predictions)
    f1_scores = _best_of_references(_f1_or_both_empty, references, predictions)
    groups = {
        "": list(references),
        "has_answer_": [i for i, texts in references.items() if texts != NO_ANSWER],
        "no_answer_": [i for i, texts in references.items() if texts == NO_ANSWER],
    }
    result: Dict[str, float] = {}
    for prefix, ids in groups.items():
        result[f"{prefix}exact_match"] = _percent(exact[i] for i in ids)
        result[f"{prefix}f1"] = _percent(f1_scores[i] for i in ids)
        result[f"{prefix}questions"] = len(ids)
    result["unanswered"] = sum(question_id not in predictions for question_id in references)
    return result


def best_null_threshold(
    references: References, best_answers: Mapping[str, str], null_score_diffs: Mapping[str, float]
) -> ThresholdScore:
    """The threshold on the null score difference that gives the highest F1 on these SQuAD 2.0 questions.

    `best_answers` are the best non-empty answers; `null_score_diffs` says by how much "no answer" is
    preferred to them.  A question is left unanswered where its difference is above the threshold.
    """
    references = {question_id: _or_no_answer(texts) for question_id, texts in references.items()}
    f1_scores = _best_of_references(_f1_or_both_empty, references, best_answers)
    # Below the smallest difference nothing is answered: right for the questions that have no answer.
    score = float(sum(texts == NO_ANSWER for texts in references.values()))
    best_score, best_threshold = score, 0.0
    for question_id in sorted(references, key=lambda i: null_score_diffs[i]):
        answerable = references[question_id] != NO_ANSWER
        score += f1_scores[question_id] if answerable else -1.0
        if score > best_score:
            best_score, best_threshold = score, null_score_diffs[question_id]
    return ThresholdScore(100.0 * best_score / max(1, len(references)), best_threshold)


def _best_of_references(
    metric: Callable[[str, str], float], references: References, predictions: Mapping[str, str]
) -> Dict[str, float]:
    return {
        question_id: max((metric(predictions[question_id], text) for text in texts), default=0.0)
        if question_id in predictions
        else 0.0
        for question_id, texts in references.items()
    }


def _or_no_answer(texts: Sequence[str]) -> Sequence[str]:
    """The reference answers that are more than punctuation and articles, or the empty one."""
    return [text for text in texts if normalize_answer(text)] or NO_ANSWER


def _f1_or_both_empty(prediction: str, reference: str) -> float:
    """F1 as version 2.0 has it, where the empty answer is right only for the empty reference."""
    if not normalize_answer(prediction) or not normalize_answer(reference):
        return exact_match(prediction, reference)
    return f1(prediction, reference)


def _percent(scores: Iterable[float]) -> float:
    scores = list(scores)
    return 100.0 * sum(scores) / len(scores) if scores else 0.0
