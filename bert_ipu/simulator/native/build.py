"""Build the simulator's C++ with plain g++: the custom-op runtime, libraries of custom ops, the kernels.

    python -m bert_ipu.simulator.native.build [FOLDER]
    g++ -std=c++14 -fPIC -shared my_op.cpp -o libmy_op.so $(python -m bert_ipu.simulator.native.build --flags)
    cmake -S my_ops -B build -DPOPLAR_DIR=$(python -m bert_ipu.simulator.native.build --cmake) ...

builds the runtime and the kernels ahead of their first use, and custom ops by hand.  Everything is cached under
the hash of its sources, so the first call takes a minute and later calls take milliseconds.  CMake users have
`csrc/CMakeLists.txt`, which builds the same runtime.  This file needs the standard library only: `setup.py`
runs it where torch is not there yet.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SIMULATOR = Path(__file__).resolve().parents[1]
CSRC = SIMULATOR / "csrc"
KERNELS = SIMULATOR / "runtime" / "kernels"
PREBUILT = SIMULATOR / "built"
"""What `pip install` built; empty in a checkout."""
INCLUDE = CSRC / "include"
RUNTIME_NAME = "libbert_ipu_popemu.so"
SDK_LIBRARIES = ("popart", "poplar", "popops", "poplin", "popnn", "poputil", "poprand", "popsparse")
LINKED_LIBRARIES = ("popart", "poplar", "poplin", "popnn", "popops", "poputil", "poprand")
"""What Graphcore's own build lines link custom ops with."""
WARNINGS = ("-Wall", "-Wextra", "-Werror")
RUNTIME_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fno-math-errno", *WARNINGS)
# Compiled for this very CPU; linked without an OpenMP library of their own, to share torch's threads.
KERNEL_FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-fno-math-errno",
    "-fno-trapping-math", "-fPIC", "-Wall", "-Wextra", "-Wno-maybe-uninitialized", "-Wno-uninitialized",
)  # fmt: skip
CODELET_COMPILER_VARIABLE = "BERT_IPU_CXX"
CACHE_VARIABLE = "BERT_IPU_BUILD_DIR"
# Added to every compile and link, e.g. -fsanitize=address.
FLAGS_VARIABLE = "BERT_IPU_NATIVE_FLAGS"


class BuildError(RuntimeError):
    """A compiler refused a source; the message is what the compiler said."""


def compiler() -> str:
    """Path of the C++ compiler; raises BuildError when there is none."""
    name = os.environ.get(CODELET_COMPILER_VARIABLE, "g++")
    path = shutil.which(name)
    if path is None:
        raise BuildError(
            f"the simulator's C++ parts need a C++ compiler, and {name!r} is not on PATH; "
            f"install g++ 12 or newer, or name one in {CODELET_COMPILER_VARIABLE}"
        )
    return path


def cache_root() -> Path:
    """Where builds are cached: $BERT_IPU_BUILD_DIR, build/simulator of a checkout, or the user's cache."""
    override = os.environ.get(CACHE_VARIABLE)
    if override:
        return Path(override)
    checkout = SIMULATOR.parents[1]
    if (checkout / "pyproject.toml").exists():
        return checkout / "build" / "simulator"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bert_ipu"


def _cached(relative: Path) -> Path:
    """Where a build is, or is to be: what `pip install` built where it did, else in the cache."""
    prebuilt = PREBUILT / relative
    return prebuilt if prebuilt.exists() else cache_root() / relative


def build_runtime(jobs: int | None = None) -> Path:
    """Build the runtime once per version of its sources and return the library's path.

    The folder of the result also holds libpopart.so, libpoplar.so, ..., for an upstream `-L`.
    Raises BuildError with the compiler's words.
    """
    flags = _extra_flags()
    sources = sorted((CSRC / "src").glob("*.cpp"))
    library = _cached(Path(_digest([*sources, *_headers()], [*RUNTIME_FLAGS, *flags])) / RUNTIME_NAME)
    if _is_whole(library):
        return library
    folder = library.parent
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        objects = list(pool.map(lambda source: _compile_object(source, flags), sources))
    link = [
        compiler(),
        "-shared",
        *flags,
        *map(str, objects),
        "-ldl",
        "-Wl,--no-undefined",
        f"-Wl,-soname,{RUNTIME_NAME}",
    ]
    for name in SDK_LIBRARIES:
        _write_atomically(folder / f"lib{name}.so", f"INPUT({RUNTIME_NAME})\n")
    _run_into(link, library)
    return library


def writable_folder(runtime: Path) -> Path:
    """Where what is compiled against a runtime is cached: beside it, unless it was installed."""
    return cache_root() / runtime.parent.name


def library_flags() -> list[str]:
    """What g++ needs besides the sources of a custom op, which come before it; builds the runtime."""
    folder = build_runtime().parent
    names = [f"-l{name}" for name in LINKED_LIBRARIES]
    return [f"-I{INCLUDE}", f"-L{folder}", f"-Wl,-rpath,{folder}", *names]


def cmake_packages() -> Path:
    """A folder for -DPOPLAR_DIR and -DPOPART_DIR, whose packages mean the runtime; builds the runtime."""
    runtime = build_runtime()
    folder = writable_folder(runtime)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("poplar", "popart"):
        text = (CSRC / "cmake" / f"{name}-config.cmake.in").read_text()
        text = text.replace("@CMAKE_BINARY_DIR@", str(runtime.parent))
        text = text.replace("@CMAKE_CURRENT_SOURCE_DIR@", str(CSRC))
        _write_atomically(folder / f"{name}-config.cmake", text)
    return folder


def compile_library(
    sources: Sequence[Path],
    output: Path | None = None,
    *,
    flags: Sequence[str] = ("-std=c++14",),
) -> Path:
    """Compile custom-op sources to one shared library, as an SDK user's g++ line would, and return its path.

    Without `output` the library is cached by the hash of its sources and of the folders they lie in; with it,
    it is compiled in any case.  Raises BuildError with the compiler's words.
    """
    command = [compiler(), "-O2", *flags, *_extra_flags(), "-fPIC", "-shared", *map(str, sources)]
    command += library_flags()
    if output is None:
        neighbours = sorted(
            {p for s in sources for p in s.parent.iterdir() if p.suffix in {".cpp", ".hpp", ".h"}}
        )
        key = _digest(neighbours, [*map(str, sources), *flags])
        output = writable_folder(build_runtime()) / "ops" / key / f"lib{sources[0].stem}.so"
        if _is_whole(output):
            return output
    output.parent.mkdir(parents=True, exist_ok=True)
    _run_into(command, output)
    return output


def build_kernels() -> Path:
    """Build the kernels of `runtime/kernels` for this CPU, once per version, and return the library's path.

    Raises BuildError where there is no compiler, or with its words where it refuses a source.
    """
    files = sorted(KERNELS.glob("*.[ch]pp"))
    key = _digest(files, [*KERNEL_FLAGS, platform.machine(), _cpu_flags()])
    library = _cached(Path(f"kernels-{key}.so"))
    if _is_whole(library):
        return library
    folder = library.with_suffix(f".{os.getpid()}.objects")
    folder.mkdir(parents=True, exist_ok=True)

    def compiled(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        _run_into([compiler(), *KERNEL_FLAGS, "-c", str(source)], target)
        return target

    try:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            objects = list(pool.map(compiled, [file for file in files if file.suffix == ".cpp"]))
        _run_into([compiler(), "-shared", *map(str, objects)], library)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return library


def _is_whole(library: Path) -> bool:
    """Whether a library is there, as long as its ELF header says: loading one that was cut off kills the process."""
    if not library.exists():
        return False
    with library.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or not header.startswith(b"\x7fELF\x02\x01"):
        return len(header) == 64  # What is not of 64 bits and little-endian is the loader's to judge.
    (sections,) = struct.unpack_from("<Q", header, 40)
    size, count = struct.unpack_from("<HH", header, 58)
    return bool(library.stat().st_size >= sections + size * count)


def _cpu_flags() -> str:
    """What -march=native depends on, so that a cache on a shared disk serves several kinds of machine."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _extra_flags() -> list[str]:
    return os.environ.get(FLAGS_VARIABLE, "").split()


def _headers() -> list[Path]:
    return sorted(p for folder in (INCLUDE, CSRC / "src") for p in folder.rglob("*.h*"))


def _compile_object(source: Path, flags: Sequence[str]) -> Path:
    """Compile one source, unless this very source was compiled with these headers before."""
    key = _digest([source, *_headers()], [*RUNTIME_FLAGS, *flags])
    target = cache_root() / "objects" / f"{source.stem}.{key}.o"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [compiler(), *RUNTIME_FLAGS, *flags, f"-I{INCLUDE}", f"-I{CSRC / 'src'}", "-c", str(source)]
    _run_into(command, target)
    return target


def _run_into(command: list[str], target: Path) -> None:
    """Run a compiler that writes `target`, which appears whole or not at all."""
    temporary = target.with_name(f"{target.name}.{os.getpid()}.part")
    result = subprocess.run([*command, "-o", str(temporary)], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        temporary.unlink(missing_ok=True)
        said = result.stderr.strip().splitlines() or ["no message"]
        reason = next((line for line in said if "error" in line), said[-1])
        first = f"{command[0]} ended with status {result.returncode}: {reason}"
        raise BuildError("\n".join([first, " ".join(command), *said]))
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.rename(target)


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    temporary.write_text(text)
    temporary.rename(path)


def _digest(files: Iterable[Path], words: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for word in words:
        digest.update(word.encode() + b"\0")
    for file in files:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def main(arguments: list[str]) -> int:
    """Build everything, into FOLDER where one is named; without a compiler, say so and succeed."""
    if arguments in (["--flags"], ["--cmake"]):
        try:
            print(*(library_flags() if arguments == ["--flags"] else [cmake_packages()]))
        except BuildError as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    if arguments:
        os.environ[CACHE_VARIABLE] = arguments[0]
    try:
        for what, build in (("custom-op runtime", build_runtime), ("kernels", build_kernels)):
            print(f"{what}: {build()}")
    except BuildError as error:
        print(f"C++ parts are not built, plain torch will run instead: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
