"""Stands for Horovod, whose name Graphcore's programs import and which one process does not use."""
