"""Stands for `popart` in child processes of `python -m bert_ipu.simulator`: registers the simulator's."""

from bert_ipu.simulator import install

install()
