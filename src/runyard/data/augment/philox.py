"""Philox4x32-10: four random 32-bit words as a pure function of a 128-bit counter and a 64-bit key.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. Words are stored in numba's default integer type,
signed 64-bit. A product of two words may wrap to a negative number; its upper word, shifted and masked, is still right.
"""

from __future__ import annotations

from numba.extending import register_jitable

MASK = 0xFFFFFFFF


@register_jitable
def philox(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """Return four words from counter words c0..c3 and key words k0, k1, all below 2**32."""
    for _ in range(10):
        p0 = c0 * 0xD2511F53
        p1 = c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((p1 >> 32) & MASK) ^ c1 ^ k0, p1 & MASK, ((p0 >> 32) & MASK) ^ c3 ^ k1, p0 & MASK
        k0 = (k0 + 0x9E3779B9) & MASK
        k1 = (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3
