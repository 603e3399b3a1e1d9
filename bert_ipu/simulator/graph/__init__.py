"""From a forward to a program: capture, autodiff, optimizers, patterns.  See docs/decisions/001-graph.md."""
