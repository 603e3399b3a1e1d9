"""C++ kernels of the runtime: small loops over plain pointers, called through ctypes."""
