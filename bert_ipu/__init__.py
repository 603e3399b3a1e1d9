"""BERT training for Graphcore IPUs, and a simulator of PopTorch to run it without one."""
