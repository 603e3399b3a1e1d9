"""The file of a compiled program: a safetensors file with the tensors, the documents as bytes, and a digest.

Reading one runs no code of the file's. A file is written beside its place and renamed, so that no reader,
of whichever process, meets half of one.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

FORMAT = "bert_ipu simulator executable"
FORMAT_VERSION = "2"
_DOCUMENT = "document:"


class UnusableFile(Exception):
    """A file that cannot be read as a compiled program; the message says why."""


@dataclass
class Contents:
    """What a file holds."""

    headers: dict[str, str]
    """Short texts, which can be read without the rest."""
    documents: dict[str, bytes]
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


def write(path: Path, contents: Contents) -> None:
    """Write a file, whole or not at all."""
    tensors = {name: tensor.contiguous() for name, tensor in contents.tensors.items()}
    for name, text in contents.documents.items():
        tensors[_DOCUMENT + name] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    headers = {**contents.headers, "format": FORMAT, "format_version": FORMAT_VERSION}
    written = save(tensors, {**headers, "digest": _digest(headers, tensors)})
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(written)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o666 & ~_umask())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def read_headers(path: Path) -> dict[str, str]:
    """Only the short texts of a file. Raises UnusableFile."""
    try:
        with safe_open(str(path), framework="pt") as file:
            headers = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UnusableFile(f"it is no such file, or damaged ({error})") from error
    _check_format(headers)
    return headers


def read(path: Path) -> Contents:
    """A file's contents, checked against its digest. Raises UnusableFile, and OSError where there is none."""
    raw = path.read_bytes()
    headers = read_headers(path)
    try:
        tensors = load(raw)
    except (SafetensorError, ValueError) as error:
        raise UnusableFile(f"it is damaged ({error})") from error
    digest = headers.pop("digest", None)
    if digest != _digest(headers, tensors):
        raise UnusableFile("it is damaged: its contents do not have the digest it was written with")
    documents = {
        name.removeprefix(_DOCUMENT): bytes(tensors.pop(name).numpy())
        for name in list(tensors)
        if name.startswith(_DOCUMENT)
    }
    return Contents(headers, documents, tensors)


def as_json(value: Any) -> bytes:
    """A document of plain values."""
    return json.dumps(value, separators=(",", ":")).encode()


def _check_format(headers: Mapping[str, str]) -> None:
    if headers.get("format") != FORMAT:
        raise UnusableFile("it was not written by save(), compileAndExport() or an executable cache")
    if headers.get("format_version") != FORMAT_VERSION:
        raise UnusableFile(
            f"it has format version {headers.get('format_version')}, this simulator reads {FORMAT_VERSION}: "
            "compile the model again"
        )


def _digest(headers: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> str:
    found = hashlib.sha256(json.dumps(sorted(headers.items())).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
