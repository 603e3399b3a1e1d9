"""Downloads from a server that cuts connections, ends early, ignores ranges and serves wrong bytes."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import download
import numpy as np
import pytest
from download import Patience

CONTENT = np.random.default_rng(0).bytes(700_000)
SHA1 = hashlib.sha1(CONTENT).hexdigest()
QUICK = Patience(attempts=3, timeout_s=1.0, pause_s=0.01)

Serve = Callable[["Handler", bytes, int], None]


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`; `server.serve` decides how badly."""

    def do_GET(self) -> None:
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.server.requests.append((self.path, start))
        self.server.serve(self, content, start)

    def answer(self, content: bytes, start: int, sent: int | None = None) -> None:
        """Promise everything from `start`, send `sent` bytes of it."""
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:][:sent])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.files = {"/file": CONTENT}
    server.requests = []
    server.serve = lambda handler, content, start: handler.answer(content, start)
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(server: ThreadingHTTPServer, path: Path) -> None:
    download.download(f"{server.url}/file", path, "sha1", SHA1, QUICK)


def cut(handler: Handler, content: bytes, start: int) -> None:
    handler.answer(content, start, sent=100_000)


def cut_without_resuming(handler: Handler, content: bytes, start: int) -> None:
    handler.answer(content, 0, sent=None if len(handler.server.requests) > 2 else 100_000)


def hang(handler: Handler, content: bytes, start: int) -> None:
    handler.answer(content, start, sent=300_000)
    if start < 600_000:
        handler.wfile.flush()
        threading.Event().wait(2.0)


def fail_twice(handler: Handler, content: bytes, start: int) -> None:
    if len(handler.server.requests) <= 2:
        handler.send_error(503)
    else:
        handler.answer(content, start)


def wrong_once(handler: Handler, content: bytes, start: int) -> None:
    wrong = content[:5000] + b"?" + content[5001:]
    handler.answer(wrong if len(handler.server.requests) == 1 else content, start)


@pytest.mark.parametrize("serve", [cut, cut_without_resuming, hang, fail_twice, wrong_once])
def test_a_bad_server_is_survived(server: ThreadingHTTPServer, tmp_path: Path, serve: Serve) -> None:
    server.serve = serve
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    if serve is cut:
        assert [start for _, start in server.requests] == list(range(0, 700_000, 100_000))


def test_an_interrupted_download_goes_on(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:123_456])
    fetch(server, tmp_path / "file")
    assert server.requests == [("/file", 123_456)]
    fetch(server, tmp_path / "file")
    assert len(server.requests) == 1, "a whole file is not downloaded again"


def test_a_longer_rest_of_another_version_is_dropped(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    def refuse(handler: Handler, content: bytes, start: int) -> None:
        handler.send_error(416) if start > len(content) else handler.answer(content, start)

    server.serve = refuse
    (tmp_path / "file.part").write_bytes(bytes(800_000))
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_wrong_bytes_are_never_taken_for_whole(
    server: ThreadingHTTPServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files = {f"/{name}": b"{}" for name in download.SQUAD_SHA256}
    assert download.main(["squad", "--out", str(tmp_path), "--mirror", server.url], QUICK) == 2
    said = capsys.readouterr().err
    assert "published is" in said and "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("serve", "message"),
    [
        (lambda handler, content, start: handler.answer(content, start, sent=0), "brought nothing"),
        (lambda handler, content, start: handler.send_error(403), "answers 403"),
    ],
)
def test_a_hopeless_server_is_given_up(
    server: ThreadingHTTPServer, tmp_path: Path, serve: Serve, message: str
) -> None:
    server.serve = serve
    with pytest.raises(download.DataError, match=message):
        fetch(server, tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_no_server_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert download.main(["squad", "--out", str(tmp_path), "--mirror", "http://127.0.0.1:9"], QUICK) == 2
    assert "brought nothing" in capsys.readouterr().err


def test_wikipedia_is_checked_by_its_list(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    name = "pages-articles-multistream.xml.bz2"
    server.files = {
        "/simplewiki/latest/simplewiki-latest-sha1sums.txt": f"{SHA1}  simplewiki-20260101-{name}\n".encode(),
        f"/simplewiki/latest/simplewiki-latest-{name}": CONTENT,
    }
    arguments = ["wikipedia", "--wiki", "simplewiki", "--out", str(tmp_path), "--mirror", server.url]
    assert download.main(arguments, QUICK) == 0
    assert (tmp_path / f"simplewiki-20260101-{name}").read_bytes() == CONTENT
