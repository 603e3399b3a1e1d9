"""Stands for wandb, which Graphcore's programs import and use only with `--wandb true`."""
