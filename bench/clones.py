"""Other people's programs, taken out of a clone as they were committed."""

from __future__ import annotations

import subprocess
from pathlib import Path


def unpack(clone: Path, folder: str, target: Path) -> Path:
    """Write a folder of the clone's newest commit below `target`; returns where it lies."""
    git = ["git", "-C", str(clone)]
    listed = subprocess.run(
        [*git, "ls-tree", "-r", "--name-only", "HEAD", folder], capture_output=True, check=True, text=True
    )
    for name in listed.stdout.splitlines():
        content = subprocess.run([*git, "show", f"HEAD:{name}"], capture_output=True, check=True).stdout
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return target / folder
