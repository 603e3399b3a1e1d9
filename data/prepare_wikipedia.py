"""Text to pretraining records, streaming, in parallel, resumable.

    python data/prepare_wikipedia.py INPUT... --vocab VOCAB --out DIR --sequence-length 128 [--pack]

INPUT is a Wikipedia dump (pages-articles .xml or .xml.bz2), WikiExtractor's output (folder, file or archive),
or plain text with one paragraph a line and a blank line between documents.  Run the same command again after
an interruption: it carries on where it stopped.  `mpirun -n N python data/prepare_wikipedia.py ...` shares
the work among N ranks that see the same DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from histogram import length_histogram_svg
from packing import least_rows
from parallel import Ranks, mapped
from preparation import Job, encode_piece, groups, start, summary, write_group
from sources import Reader
from tqdm import tqdm

from bert_ipu.errors import ConfigError, DataError, UserError
from bert_ipu.records import MANIFEST_NAME, Shard, atomic_file
from bert_ipu.records_writer import write_manifest
from bert_ipu.tokenizer import TOKENIZER_CONFIG_NAME

DEFAULT_PACK = 3
_INTERRUPTED = 128 + signal.SIGINT


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 2 a mistake in the options, the input or on the disk, 130 Ctrl-C, 1 our own."""
    options = parsed(arguments)
    ranks = Ranks()
    try:
        run(options, ranks)
    except (UserError, OSError) as error:
        print(f"prepare_wikipedia: {error}", file=sys.stderr, flush=True)
        ranks.abort(2)
        return 2
    except KeyboardInterrupt:
        print("prepare_wikipedia: interrupted. The same command carries on.", file=sys.stderr, flush=True)
        ranks.abort(_INTERRUPTED)
        return _INTERRUPTED
    except Exception:
        # What Python would do by itself, but that the other ranks must not wait for this one for ever.
        traceback.print_exc()
        ranks.abort(1)
        return 1
    return 0


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT")
    parser.add_argument("--vocab", type=Path, required=True, help="vocab.txt of BERT, one token a line")
    parser.add_argument(
        "--out", type=Path, required=True, help="directory of the records; new, or an unfinished one"
    )
    parser.add_argument("--sequence-length", type=int, default=128, metavar="TOKENS")
    parser.add_argument(
        "--pack", type=int, nargs="?", const=DEFAULT_PACK, default=1, metavar="SEQUENCES",
        help=f"put up to SEQUENCES sequences in a row (default without a number: {DEFAULT_PACK})",
    )  # fmt: skip
    parser.add_argument(
        "--held-out",
        type=int,
        default=0,
        metavar="N",
        help="put every N-th MB of the input into OUT/held_out",
    )
    parser.add_argument("--cased", action="store_true", help="keep upper case and accents")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="processes of this rank (default: all cores)"
    )
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, ranks: Ranks) -> None:
    """Prepare the records; raises UserError on bad options or input."""
    if not 16 <= options.sequence_length < 1 << 16 or not 1 <= options.pack <= 200 or options.workers < 1:
        raise ConfigError(
            f"--sequence-length {options.sequence_length} --pack {options.pack} --workers {options.workers}: "
            "allowed are 16 to 65535 tokens, 1 to 200 sequences and at least 1 process. Change what is "
            "outside."
        )
    job = Job(
        tuple(options.inputs), options.vocab, options.out, options.sequence_length, options.pack,
        not options.cased, options.seed, options.held_out,
    )  # fmt: skip
    started = time.time()
    if (job.out / MANIFEST_NAME).exists():
        raise DataError(f"{job.out} holds a whole data set already. Name another --out, or remove it.")
    job.layout()  # a bad vocabulary is refused before the first gigabyte is read
    reader = Reader(options.inputs)
    if ranks.rank == 0:
        start(job, reader.files)
    ranks.barrier()
    pieces = encode_all(job, reader, ranks, options.workers)
    ranks.barrier()
    if not pieces:
        raise DataError(_no_text(job))
    for directory, parts in job.splits(pieces).items():
        assemble(job, directory, parts, ranks, options.workers)
    if ranks.rank == 0:
        shutil.rmtree(job.parts)
        print(f"{job.out} is whole after {time.time() - started:.0f} s")


def encode_all(job: Job, reader: Reader, ranks: Ranks, workers: int) -> int:
    """Write this rank's parts that are not there yet; returns the number of pieces of all ranks."""
    pieces = 0

    def missing() -> Iterator[tuple[Any, ...]]:
        nonlocal pieces
        for piece in reader.pieces():
            pieces = piece.number + 1
            if piece.number % ranks.size == ranks.rank and not job.part(piece.number).exists():
                yield job, piece

    progress = tqdm(
        total=reader.total_bytes, unit="B", unit_scale=True, desc="reading", disable=ranks.rank > 0,
        mininterval=0.5 if sys.stderr.isatty() else 30,
    )  # fmt: skip
    text_bytes, started = 0, time.time()
    with progress:
        for written in mapped(encode_piece, missing(), workers):
            text_bytes += written
            progress.set_postfix_str(
                f"{text_bytes / 1e6 / (time.time() - started):.2f} MB of text/s", refresh=False
            )
            progress.update(reader.read_bytes - progress.n)
        progress.update(reader.read_bytes - progress.n)
    return pieces


def assemble(job: Job, directory: Path, parts: list[int], ranks: Ranks, workers: int) -> None:
    """Make a data set of parts: all ranks write shards, then rank 0 writes what completes it."""
    directory.mkdir(exist_ok=True)
    everything = list(groups(job, directory, parts))
    mine = [(job, group) for group in everything if group.number % ranks.size == ranks.rank]
    written = mapped(write_group, mine, workers)
    for _ in tqdm(written, total=len(mine), desc="packing", disable=ranks.rank > 0):
        pass
    ranks.barrier()
    if ranks.rank == 0:
        finish(job, directory, parts, [group.shard(job.layout()) for group in everything])
    ranks.barrier()


def finish(job: Job, directory: Path, parts: list[int], shards: list[Shard]) -> None:
    """Write the report, the picture and, last, the manifest of a data set."""
    counts, histogram = summary(job, parts)
    if not counts["sequences"]:
        raise DataError(_no_text(job) + f" Found: {dict(counts)}.")
    rows = sum(shard.rows for shard in shards)
    tokens = int(histogram @ np.arange(len(histogram)))
    report = {
        **counts,
        "rows": rows,
        "sequences_per_row": round(counts["sequences"] / rows, 4),
        "row_tokens_used": round(tokens / rows / job.sequence_length, 4),
        "rows_of_a_perfect_packing": least_rows(histogram, job.sequence_length, job.max_sequences_per_pack),
        "length_histogram": histogram.tolist(),
    }
    with atomic_file(directory / "report.json") as file:
        file.write(json.dumps(report, indent=1).encode())
    with atomic_file(directory / "lengths.svg") as file:
        file.write(length_histogram_svg(histogram).encode())
    with atomic_file(directory / TOKENIZER_CONFIG_NAME) as file:  # checkpoints and fine-tuning keep to it
        file.write(json.dumps({"do_lower_case": job.lowercase}).encode())
    write_manifest(directory, job.layout(), shards, job.vocab_file, report)
    for name, value in list(report.items())[:-1]:
        print(f"{name:>40} {value:,}")
    print(f"{directory}: {len(shards)} shards, report.json, lengths.svg")


def _no_text(job: Job) -> str:
    return (
        f"No text was found in {', '.join(map(str, job.inputs))}. Give a pages-articles dump, WikiExtractor "
        "output, or plain text with blank lines between documents."
    )


if __name__ == "__main__":
    sys.exit(main())
