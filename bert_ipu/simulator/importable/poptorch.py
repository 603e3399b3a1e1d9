"""Stands for `poptorch` in child processes of `python -m bert_ipu.simulator`: registers the simulator's."""

import sys
from pathlib import Path

# Before the program's folder, which may have a bert_ipu.py of its own.
sys.path.insert(0, str(Path(__file__).parents[3]))
try:
    from bert_ipu.simulator import install
finally:
    del sys.path[0]

install()
