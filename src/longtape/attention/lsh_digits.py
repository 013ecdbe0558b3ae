"""How Reformer's buckets are numbered: digits of a hash, each told by rotations."""

from __future__ import annotations

DIGIT_BITS = 6  # a hash digit tells at most 64 buckets apart,
AXES = 2 ** (DIGIT_BITS - 1)  # by as many rotations


def digits_of(n_tokens: int, size: int) -> list[int]:
    """Bits of each digit of the buckets' numbers: as many buckets as chunks, to the next power of two."""
    bits = max(0, (-(-n_tokens // size) - 1).bit_length())
    n_digits = -(-bits // DIGIT_BITS)
    return [bits // n_digits + (digit < bits % n_digits) for digit in range(n_digits)]
