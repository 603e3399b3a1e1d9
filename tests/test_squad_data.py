from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertTokenizerFast

from bert_ipu.batch import SquadBatch
from bert_ipu.errors import DataError
from bert_ipu.squad_data import (
    Answer,
    SquadExample,
    SquadWindows,
    best_answers,
    lost_answers,
    make_windows,
    read_squad,
)
from bert_ipu.tokenizer import load_tokenizer

SAMPLE = Path(__file__).parents[1] / "data" / "sample"
LENGTH, STRIDE = 384, 128


def real_windows(shared_data: Path, name: str) -> SquadWindows:
    """Windows of a real file with bert-base-uncased's vocabulary; no question is cut."""
    vocab = shared_data / "models" / "all-MiniLM-L6-v2" / "vocab.txt"
    examples = read_squad(shared_data / "squad" / f"{name}.json")
    return make_windows(examples, load_tokenizer(vocab), LENGTH, STRIDE, max_query_length=200)


@pytest.fixture(scope="module")
def sample_windows() -> SquadWindows:
    """Rows so short that nearly every context of the sample needs several."""
    examples = read_squad(SAMPLE / "qa.json")[:60]
    return make_windows(examples, load_tokenizer(SAMPLE / "vocab.txt"), 64, 16, max_query_length=16)


@pytest.mark.parametrize("name", ["train-v1.1-first12articles", "xquad_half_a.zh", "xquad_half_a.ar"])
def test_windows_are_those_of_hugging_face(shared_data: Path, name: str) -> None:
    """Token ids, types, masks, offsets and answer positions of every window on real files."""
    windows = real_windows(shared_data, name)
    examples = windows.examples
    vocab = shared_data / "models" / "all-MiniLM-L6-v2" / "vocab.txt"
    expected = BertTokenizerFast(vocab=str(vocab), do_lower_case=True)(
        [example.question for example in examples],
        [example.context for example in examples],
        truncation="only_second",
        max_length=LENGTH,
        stride=STRIDE,
        padding="max_length",
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    rows = windows.batch(range(len(windows)))
    np.testing.assert_array_equal(windows.example_index, expected["overflow_to_sample_mapping"])
    np.testing.assert_array_equal(rows.input_ids, expected["input_ids"])
    np.testing.assert_array_equal(rows.token_type_ids, expected["token_type_ids"])
    np.testing.assert_array_equal(rows.attention_mask, expected["attention_mask"])
    for window, encoding in enumerate(expected.encodings):
        first, count = windows.first_token[window], windows.token_count[window]
        begin = windows.context_start(window)
        example = windows.example_index[window]
        offsets = windows.context_offsets[example][first : first + count]
        np.testing.assert_array_equal(offsets, encoding.offsets[begin : begin + count])
        answer = examples[example].answers[0]
        start = encoding.char_to_token(answer.start, 1)
        end = encoding.char_to_token(answer.start + len(answer.text) - 1, 1)
        if start is None or end is None:  # outside the window, or a character that belongs to no token
            assert windows.start_positions[window] == 0 or lost_for_want_of_a_token(windows, answer, example)
        else:
            assert (windows.start_positions[window], windows.end_positions[window]) == (start, end)


def lost_for_want_of_a_token(windows: SquadWindows, answer: Answer, example: int) -> bool:
    covered = {c for a, b in windows.context_offsets[example] for c in range(a, b)}
    return answer.start not in covered or answer.start + len(answer.text) - 1 not in covered


def test_every_real_answer_is_found_back_or_listed(shared_data: Path) -> None:
    windows = real_windows(shared_data, "train-v1.1-first12articles")
    lost = {answer.id: answer for answer in lost_answers(windows)}
    found: dict[str, set[str]] = {}
    for window in np.flatnonzero(windows.start_positions):
        text = windows.text(window, windows.start_positions[window], windows.end_positions[window])
        found.setdefault(windows.examples[windows.example_index[window]].id, set()).add(text)
    for example in windows.examples:
        if example.id in lost:
            assert found[example.id] == {lost[example.id].found} != {example.answers[0].text}
            assert lost[example.id].reason == "begins or ends inside a token"
        else:
            assert found[example.id] == {example.answers[0].text}
    assert len(lost) == 27  # such as "six" of "sixth"; annotators may mark any characters


def test_reasons_name_what_was_lost(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(SAMPLE / "vocab.txt")
    context = "the weather was " + "warm " * 40 + "today\u0301 ."
    whole = SquadExample("long", "what was it ?", context, (Answer(context[4:210], 4),))
    inside = SquadExample("inside", "what was it ?", context, (Answer("weath", 4),))
    accent = SquadExample("accent", "when ?", context, (Answer("today\u0301", context.index("today")),))
    none = SquadExample("none", "why ?", context, ())
    windows = make_windows([whole, inside, accent, none], tokenizer, 40, 8, 8)
    assert [(lost.id, lost.reason) for lost in lost_answers(windows)] == [
        ("long", "no window holds the whole answer"),
        ("inside", "begins or ends inside a token"),
        ("accent", "begins or ends with characters that belong to no token"),
    ]


def test_sample_questions_are_about_the_sample_corpus() -> None:
    corpus = set((SAMPLE / "corpus.txt").read_text(encoding="utf-8").splitlines())
    examples = read_squad(SAMPLE / "qa.json")
    assert {example.context for example in examples} == corpus - {""}
    assert all(len(example.answers) == 1 for example in examples)


def test_sample_answers_are_all_found_back(sample_windows: SquadWindows) -> None:
    assert len(sample_windows) > 1.5 * len(sample_windows.examples)
    assert lost_answers(sample_windows) == []


def test_rows_are_named_modulo_their_number(sample_windows: SquadWindows) -> None:
    size = len(sample_windows)
    batch = sample_windows.batch([5, 6, 5 + 3 * size])
    assert isinstance(batch, SquadBatch)
    assert batch.input_ids.shape == (3, 64)
    assert batch.start_positions.shape == (3,)
    for field, row in zip(batch, sample_windows[6], strict=True):
        assert field.dtype == torch.int32
        assert torch.equal(field[0], field[2])
        assert torch.equal(field[1], row)


def test_long_questions_are_cut(sample_windows: SquadWindows) -> None:
    tokenizer = load_tokenizer(SAMPLE / "vocab.txt")
    example = SquadExample("q", "what " * 100, "the moon .", (Answer("moon", 4),))
    windows = make_windows([example], tokenizer, 32, 4, 16)
    assert len(windows.question_ids[0]) == 16
    assert windows.text(0, windows.start_positions[0], windows.end_positions[0]) == "moon"


def spans_by_hand(
    windows: SquadWindows, starts: torch.Tensor, ends: torch.Tensor, max_length: int
) -> dict[str, list[tuple[float, str]]]:
    """Every allowed span of every example with its score, best first, one per text: the definition itself."""
    best: dict[str, dict[str, float]] = {}
    for window in range(len(windows)):
        begin = windows.context_start(window)
        positions = range(begin, begin + windows.token_count[window])
        texts = best.setdefault(windows.examples[windows.example_index[window]].id, {})
        for start, end in itertools.product(positions, positions):
            if start <= end < start + max_length:
                text = windows.text(window, start, end)
                score = starts[window, start].item() + ends[window, end].item()
                texts[text] = max(score, texts.get(text, -np.inf))
    return {i: sorted(((s, t) for t, s in texts.items()), reverse=True) for i, texts in best.items()}


def random_logits(windows: SquadWindows) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    starts, ends = torch.randn(
        2, len(windows), windows.sequence_length, dtype=torch.float64, generator=generator
    )
    return starts, ends


def test_best_answers_are_the_best_of_all_spans(sample_windows: SquadWindows) -> None:
    starts, ends = random_logits(sample_windows)
    predictions = best_answers(sample_windows, starts, ends, n_best=5, max_answer_length=7, version_2=False)
    expected = spans_by_hand(sample_windows, starts, ends, max_length=7)
    for prediction in predictions:
        best = expected[prediction.id][:5]
        assert [answer.text for answer in prediction.n_best] == [text for _, text in best]
        scores = torch.tensor([score for score, _ in best], dtype=torch.float64)
        probabilities = torch.tensor(
            [answer.probability for answer in prediction.n_best], dtype=torch.float64
        )
        torch.testing.assert_close(probabilities, scores.softmax(0))


def test_no_answer_competes_in_version_2(sample_windows: SquadWindows) -> None:
    starts, ends = random_logits(sample_windows)
    starts[:, 0] = 100.0
    predictions = best_answers(sample_windows, starts, ends, n_best=5, max_answer_length=7, version_2=True)
    expected = spans_by_hand(sample_windows, starts, ends, max_length=7)
    for index, prediction in enumerate(predictions):
        null = (
            (starts[:, 0] + ends[:, 0])[torch.from_numpy(sample_windows.example_index == index)].min().item()
        )
        assert [answer.text for answer in prediction.n_best] == [
            "",
            *(t for _, t in expected[prediction.id][:4]),
        ]
        assert prediction.null_score_diff == pytest.approx(null - expected[prediction.id][0][0])
        assert prediction.best_text() == expected[prediction.id][0][1]


def test_an_empty_context_has_the_empty_answer() -> None:
    example = SquadExample("q", "what ?", " ", ())
    windows = make_windows([example], load_tokenizer(SAMPLE / "vocab.txt"), 32, 4, 16)
    (prediction,) = best_answers(windows, torch.zeros(1, 32), torch.zeros(1, 32), 5, 7, version_2=False)
    assert [answer.text for answer in prediction.n_best] == [""]


def test_a_perfect_model_gets_every_sample_answer(sample_windows: SquadWindows) -> None:
    rows = sample_windows.batch(range(len(sample_windows)))
    starts, ends = (
        torch.nn.functional.one_hot(positions.long(), 64) * 10.0
        for positions in (rows.start_positions, rows.end_positions)
    )
    predictions = best_answers(sample_windows, starts, ends, n_best=1, max_answer_length=30, version_2=False)
    for example, prediction in zip(sample_windows.examples, predictions, strict=True):
        assert prediction.best_text() == example.answers[0].text


def first_question(squad: dict[str, Any]) -> dict[str, Any]:
    question: dict[str, Any] = squad["data"][0]["paragraphs"][0]["qas"][0]
    return question


def shift_offset(squad: dict[str, Any]) -> None:
    first_question(squad)["answers"][0]["answer_start"] += 1


def negative_offset(squad: dict[str, Any]) -> None:
    first_question(squad)["answers"][0]["answer_start"] = -3


def absent_answer(squad: dict[str, Any]) -> None:
    first_question(squad)["answers"][0]["text"] = "a whale"


def empty_answer(squad: dict[str, Any]) -> None:
    first_question(squad)["answers"][0]["text"] = ""


def no_question_text(squad: dict[str, Any]) -> None:
    del first_question(squad)["question"]


def question_that_is_none(squad: dict[str, Any]) -> None:
    first_question(squad)["question"] = None


def repeated_id(squad: dict[str, Any]) -> None:
    squad["data"][0]["paragraphs"][1]["qas"][0]["id"] = first_question(squad)["id"]


def no_questions(squad: dict[str, Any]) -> None:
    squad["data"] = []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            shift_offset,
            r"question binary-numbers-1-1.*'a bit' should stand at character 102.*first stands at 101",
        ),
        (negative_offset, "'a bit' should stand at character -3"),
        (absent_answer, "stands nowhere in the context"),
        (empty_answer, "an answer is empty"),
        (no_question_text, "not in SQuAD's format.*'question'"),
        (question_that_is_none, "not in SQuAD's format.*question binary-numbers-1-1 has None"),
        (repeated_id, "two questions with the id 'binary-numbers-1-1'"),
        (no_questions, "has no questions"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[dict[str, Any]], None], message: str) -> None:
    squad = copy.deepcopy(json.loads((SAMPLE / "qa.json").read_text(encoding="utf-8")))
    damage(squad)
    (tmp_path / "qa.json").write_text(json.dumps(squad), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_squad(tmp_path / "qa.json")


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    (tmp_path / "qa.json").write_bytes((SAMPLE / "qa.json").read_bytes()[:5000])
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read_squad(tmp_path / "qa.json")


@pytest.mark.parametrize("content", ["[]", '{"data": 3}', '{"data": [7]}', '{"version": "1.1"}'])
def test_other_json_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "qa.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="not in SQuAD's format"):
        read_squad(tmp_path / "qa.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no SQuAD file"):
        read_squad(tmp_path / "qa.json")


def test_questions_without_answers_aim_at_cls() -> None:
    example = SquadExample("q", "what ?", "the moon .", ())
    windows = make_windows([example], load_tokenizer(SAMPLE / "vocab.txt"), 32, 4, 16)
    assert (windows.start_positions[0], windows.end_positions[0]) == (0, 0)
