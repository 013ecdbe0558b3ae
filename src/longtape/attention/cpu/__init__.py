"""Attention on a CPU: loops compiled by numba, with an instruction block of their own (`simd.py`).

Nothing here is imported before an operator of `longtape.attention` meets a tensor on a CPU.
"""
