"""Registers: what the processor has (cpu.py), values in them (vectors.py), and the inner loops made of them."""
