"""Numba kernels, installed as `pg2ref.kernels`; they import numpy, numba and llvmlite only."""
