"""Check that the custom ops use only what the real PopART and poplibs headers declare.

    python custom_ops/check_real_api.py --popart CLONE --poplibs CLONE

The SDK is not needed: only clones of graphcore/popart and graphcore/poplibs. Four things are checked for each
source: every included header exists; every `popart::` and `popops::` name is declared; every method that is
overridden is declared with the same signature; every member that is called is declared somewhere in these
headers, or in Poplar's own classes, whose headers are not public and whose members are listed here from its
documentation. Prints what is missing and exits 1, or prints how much was checked.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import List, Set

HERE = Path(__file__).resolve().parent
# poplar::Tensor and poplar::Graph, as documented in the Poplar API reference.
POPLAR_MEMBERS = {
    "flatten", "reshape", "expand", "dim", "rank", "shape", "numElements", "elementType", "reinterpret",
}  # fmt: skip
STANDARD_MEMBERS = {"push", "pop", "front", "empty", "size", "begin", "end", "get", "at"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--popart", type=Path, required=True, help="a clone of graphcore/popart")
    parser.add_argument("--poplibs", type=Path, required=True, help="a clone of graphcore/poplibs")
    arguments = parser.parse_args()
    roots = [arguments.popart / "willow" / "include", arguments.poplibs / "include"]
    for clone, root in zip([arguments.popart, arguments.poplibs], roots):
        if not root.is_dir():
            print(f"{root} does not exist: is {clone} a clone of the right repository?", file=sys.stderr)
            return 2
    api = RealApi(roots)
    missing: List[str] = []
    sources = sorted(HERE.glob("*/*.cpp"))
    for source in sources:
        problems = api.problems(without_comments(source.read_text()))
        missing += [f"{source.relative_to(HERE)}: {problem}" for problem in problems]
    for problem in missing:
        print(problem)
    print(f"{len(sources)} sources, {api.checked} uses checked, {len(missing)} not in the real API")
    return 1 if missing else 0


class RealApi:
    """The declarations of the real headers, as text."""

    def __init__(self, roots: List[Path]) -> None:
        self.roots = roots
        headers = [header for root in roots for header in sorted(root.rglob("*.hpp"))]
        text = "\n".join(without_comments(header.read_text()) for header in headers)
        self.words: Set[str] = set(re.findall(r"\w+", text))
        self.normal = normalised(text)
        self.checked = 0

    def problems(self, source: str) -> List[str]:
        """Everything in one source that the headers do not have."""
        own = set(re.findall(r"\b(?:class|struct|bool|auto)\s+(\w+)", source)) | own_methods(source)
        found = [f"no header {h}" for h in self._take(included(source)) if not self._has_header(h)]
        names = self._take(qualified(source))
        found += [f"no name {n}" for n in names if n.rsplit("::", 1)[1] not in self.words]
        found += [f"no virtual {o}" for o in self._take(overrides(source)) if not self._declares(o)]
        allowed = self.words | own | POPLAR_MEMBERS | STANDARD_MEMBERS
        found += [f"no member {m}" for m in self._take(called(source)) if m not in allowed]
        return found

    def _take(self, uses: Set[str]) -> List[str]:
        self.checked += len(uses)
        return sorted(uses)

    def _has_header(self, header: str) -> bool:
        return any((root / header).is_file() for root in self.roots)

    def _declares(self, signature: str) -> bool:
        return signature in self.normal


def without_comments(text: str) -> str:
    return re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.S)


def included(source: str) -> Set[str]:
    return set(re.findall(r"#include <((?:popart|popops|poplin|poputil|popnn|poprand)/[\w/.]+)>", source))


def qualified(source: str) -> Set[str]:
    names = set(re.findall(r"\b((?:\w+::)+\w+)", source))
    return {n for n in names if n.split("::")[0] in ("popart", "popops", "poplin", "poputil")}


def normalised(text: str) -> str:
    """Declarations without namespaces, parameter names and spaces, so that spelling does not matter."""
    text = re.sub(r"\b(?:popart|popx|poplar|program|std|view)::", "", text)
    text = re.sub(r"\(([^()]*)\)", lambda match: f"({without_names(match.group(1))})", text)
    return re.sub(r"\s+", "", text)


def without_names(parameters: str) -> str:
    """The types of a parameter list."""
    types = []
    for parameter in re.split(r",(?![^<]*>)", parameters):
        tokens = re.findall(r"\w+|[^\w\s]+", parameter)
        is_named = (
            len(tokens) > 1 and tokens[-1].isidentifier() and tokens[-2] not in ("const", "unsigned", "<")
        )
        types.append(" ".join(tokens[:-1] if is_named else tokens))
    return ",".join(types)


def overrides(source: str) -> Set[str]:
    """`name(types)const` of every method marked override."""
    return {normalised(s) for s in re.findall(r"(\w+\([^()]*\)\s*(?:const)?)\s*override", source)}


def own_methods(source: str) -> Set[str]:
    return set(re.findall(r"\b(\w+)\([^()]*\)\s*(?:const\s*)?(?:override\s*)?\{", source))


def called(source: str) -> Set[str]:
    return set(re.findall(r"(?:->|\.)(\w+)(?:<[^<>]*>)?\(", source))


if __name__ == "__main__":
    sys.exit(main())
