"""Stands for `popdist` in child processes of `python -m bert_ipu.simulator`: registers the simulator's."""

import poptorch  # noqa: F401  (the one beside this file, which registers all)
