"""Turns SQuAD files into windows: how long it takes, which answers tokens do not give back, and why.

python bench/squad_features.py FILE... --vocab VOCAB
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bert_ipu.squad_data import lost_answers, make_windows, read_squad
from bert_ipu.tokenizer import load_tokenizer

SEQUENCE_LENGTH, DOC_STRIDE, MAX_QUERY_LENGTH = 384, 128, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--vocab", type=Path, required=True)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.vocab)
    for path in arguments.files:
        started = time.perf_counter()
        examples = read_squad(path)
        windows = make_windows(examples, tokenizer, SEQUENCE_LENGTH, DOC_STRIDE, MAX_QUERY_LENGTH)
        seconds = time.perf_counter() - started
        lost = lost_answers(windows)
        print(f"{path.name}: {len(examples):,} questions, {len(windows):,} windows in {seconds:.2f} s")
        print(f"  {len(examples) - len(lost):,} answers found back letter by letter, {len(lost)} not:")
        for answer in lost:
            print(f"  {answer.id}  {answer.answer!r}, found {answer.found!r}: {answer.reason}")


if __name__ == "__main__":
    main()
