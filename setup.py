"""Adds one step to the build: the simulator's C++ parts, where a compiler is there."""

import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithNative(build_py):
    """Copies the package, then compiles into it; without a compiler the simulator runs on plain torch."""

    def run(self) -> None:
        super().run()
        simulator = Path(self.build_lib) / "bert_ipu" / "simulator"
        script = simulator / "native" / "build.py"
        subprocess.run([sys.executable, str(script), str(simulator / "built")], check=True)


setup(cmdclass={"build_py": BuildWithNative})
