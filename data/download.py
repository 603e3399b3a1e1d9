"""Download Wikipedia or SQuAD, resumed after a break and checked by checksum.

    python data/download.py wikipedia --out DIR [--wiki enwiki] [--date latest] [--mirror URL]
    python data/download.py squad --out DIR [--mirror URL]

Run the same command again after an interruption: it carries on at the byte where it stopped.  Mirrors of the
dumps are listed on https://dumps.wikimedia.org/mirrors.html; they are often faster.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from bert_ipu.errors import DataError, UserError

WIKIPEDIA_MIRROR = "https://dumps.wikimedia.org"
SQUAD_MIRROR = "https://rajpurkar.github.io/SQuAD-explorer/dataset"
# SHA-256 as recorded by ParlAI (parlai/tasks/squad/build.py, squad2/build.py) and others.
SQUAD_SHA256 = {
    "train-v1.1.json": "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
    "dev-v1.1.json": "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
    "train-v2.0.json": "68dcfbb971bd3e96d5b46c7177b16c1a4e7d4bdef19fb204502738552dede002",
    "dev-v2.0.json": "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
}
_BLOCK_BYTES = 1 << 20
_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


class Patience(NamedTuple):
    """How long to try."""

    attempts: int = 8
    """Attempts without a byte of progress before giving up."""
    timeout_s: float = 60.0
    """Longest silence of a server."""
    pause_s: float = 2.0
    """Pause before the first repetition; it doubles with each."""


def main(arguments: list[str] | None = None, patience: Patience | None = None) -> int:
    """Exit status: 0 done, 2 the download failed, 130 Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("wikipedia", "squad"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mirror", help=f"default: {WIKIPEDIA_MIRROR}, {SQUAD_MIRROR}")
    parser.add_argument(
        "--wiki", default="enwiki", help="name of the wiki (default: enwiki; simplewiki is small)"
    )
    parser.add_argument(
        "--date", default="latest", help="date of the dump, such as 20260101 (default: latest)"
    )
    options = parser.parse_args(arguments)
    patience = patience or Patience()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        if options.what == "squad":
            for name, sha256 in SQUAD_SHA256.items():
                url = f"{options.mirror or SQUAD_MIRROR}/{name}"
                download(url, options.out / name, "sha256", sha256, patience)
        else:
            download_wikipedia(
                options.mirror or WIKIPEDIA_MIRROR, options.wiki, options.date, options.out, patience
            )
    except (UserError, OSError) as error:
        print(f"download: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("download: interrupted. The same command carries on.", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def download_wikipedia(mirror: str, wiki: str, date: str, out: Path, patience: Patience) -> Path:
    """Download the articles of one dump, checked against the SHA-1 list published beside it."""
    folder = f"{mirror}/{wiki}/{date}/{wiki}-{date}"
    sums = out / f"{wiki}-{date}-sha1sums.txt"
    sums.unlink(missing_ok=True)  # "latest" moves on
    download(f"{folder}-sha1sums.txt", sums, None, None, patience)
    name = "pages-articles-multistream.xml.bz2"
    # The list of "latest" names the files by their date.
    listed = [line.split() for line in sums.read_text().splitlines() if line.endswith(f"-{name}")]
    if len(listed) != 1:
        raise DataError(
            f"{sums} does not list one file {name}: the dump is not finished. Choose another --date."
        )
    path = out / listed[0][1]
    download(f"{folder}-{name}", path, "sha1", listed[0][0], patience)
    return path


def download(url: str, path: Path, algorithm: str | None, checksum: str | None, patience: Patience) -> None:
    """Download `url` to `path`, which appears only when it is whole and its checksum right.

    A break is resumed where it happened; a file with a wrong checksum is downloaded once more from the start.

    Raises DataError: the server refuses, gives up or keeps serving wrong bytes.
    """
    if path.exists() and (checksum is None or _digest(path, algorithm) == checksum):
        return
    part = path.with_name(f"{path.name}.part")
    for _ in range(2):
        _fetch(url, part, patience)
        found = _digest(part, algorithm)
        if checksum is None or found == checksum:
            os.replace(part, path)
            return
        part.unlink()
    raise DataError(
        f"{url} has the {algorithm} checksum {found}; published is {checksum}. The server has another "
        "version or damages it: try another --mirror or --date."
    )


def _digest(path: Path, algorithm: str | None) -> str:
    if algorithm is None:
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _fetch(url: str, part: Path, patience: Patience) -> None:
    """Bring all bytes of `url` into `part`, going on behind those that are there."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _append(url, part, before, patience.timeout_s):
                return
            problem = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and before:
                part.unlink()  # longer than the file: it is of another version
            elif error.code < http.client.INTERNAL_SERVER_ERROR:
                raise DataError(
                    f"{url}: the server answers {error.code} {error.reason}. Look it up in a browser, or "
                    "choose another --mirror, --wiki or --date."
                ) from error
            problem = f"{error.code} {error.reason}"
        except _NETWORK_ERRORS as error:
            problem = str(error)
        progressed = part.exists() and part.stat().st_size > before
        failures = 0 if progressed else failures + 1
        if failures >= patience.attempts:
            raise DataError(
                f"{url}: {failures} attempts in a row brought nothing; the last ended with: {problem}. "
                f"What is there is kept in {part}: run the same command later, or with another --mirror."
            )
        time.sleep(0 if progressed else patience.pause_s * 2 ** (failures - 1))


def _append(url: str, part: Path, start: int, timeout_s: float) -> bool:
    """One connection; True when the file is whole."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=timeout_s) as response:
        if response.status != http.client.PARTIAL_CONTENT:
            start = 0  # this server cannot resume
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        progress = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, mininterval=1)
        with open(part, "r+b" if start else "wb") as file, progress:
            file.seek(start)
            try:
                while block := response.read1(_BLOCK_BYTES):
                    file.write(block)
                    progress.update(len(block))
            finally:
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
            return total is None or file.tell() == total


if __name__ == "__main__":
    sys.exit(main())
