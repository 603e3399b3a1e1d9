"""What runs a program: lowering, numerics, random numbers, kernels, the engine."""
