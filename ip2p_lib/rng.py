"""Counter-based random numbers: pure functions of a key and a sample id.

The paper leaves randomness to the framework's global generator, so that splitting a
batch or adding a worker changes the data. Here no generator has a state. A key says
what a number is for, an id which sample it is for, and integer mixing turns both into
bits:

    noise = normal(key(run_seed, "noise", step), sample_ids, (4, 64, 64))

Reference: the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014), with Stafford's constants "Mix13".
"""

import hashlib
import json
import math

import torch
from torch import Tensor

# The constants are unsigned in the literature and are written here as the signed
# 64-bit integers with the same bits, because torch multiplies int64 modulo 2**64.
GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - 2**64
MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
MIX_2 = 0x94D049BB133111EB - 2**64


def key(*parts: int | str) -> int:
    """Hash integers and strings, which name a purpose, to one integer.

    Such as ``key(run_seed, "timestep", step)``. Types and boundaries count:
    ``key(1, 2)``, ``key(12)`` and ``key("12")`` all differ. Returns an integer in
    [0, 2**63): 63 bits of BLAKE2b, so that it fits an int64 tensor. Raises TypeError
    for other parts, since a float's text depends on rounding.
    """
    if odd := [part for part in parts if not isinstance(part, int | str)]:
        raise TypeError(f"A key is made of int and str, not {odd}. Convert it first.")
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's ``>>`` copies the sign bit in, so it is masked away."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection on 64 bits in which every bit moves all."""
    x = (x ^ _shift_right(x, 30)) * MIX_1
    x = (x ^ _shift_right(x, 27)) * MIX_2
    return x ^ _shift_right(x, 31)


def _words(key: int | Tensor, ids: Tensor, n: int) -> Tensor:
    """64 random bits for every (id, counter): int64 of shape (B, n).

    Ids and counters are mixed apart and then together, so that two samples never read
    the same stretch of one sequence; word (b, j) depends on neither B nor n.
    """
    if ids.dtype != torch.int64 or ids.ndim != 1:
        raise ValueError(
            f"ids must be int64 of shape (B,), not {ids.dtype} of {tuple(ids.shape)}."
        )
    rows = _mix(_mix(ids * GOLDEN_GAMMA + key))
    counters = torch.arange(1, n + 1, device=ids.device)
    each = key[:, None] if isinstance(key, Tensor) else key
    columns = _mix(counters * GOLDEN_GAMMA + (each ^ MIX_1))
    return _mix(rows[:, None] + columns)


def _unit(words: Tensor) -> Tensor:
    """The top 53 bits as float64 in [0, 1)."""
    return _shift_right(words, 11).double() * 2.0**-53


def uniform(key: int, ids: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Uniform numbers in [0, 1), one block of ``shape`` for each sample.

    ``ids`` are (B,) int64, or a ValueError; row b depends on ``ids[b]`` alone. Returns
    (B, *shape) float32 on their device, bit-identical on every device; ``shape`` is
    that of one sample's block, such as (4, 64, 64), ``()`` one number each.
    """
    words = _words(key, ids, math.prod(shape))
    # 24 bits are all a float32 in [0, 1) can hold; more could round up to 1.
    return (_shift_right(words, 40).float() * 2.0**-24).reshape(-1, *shape)


def normal(key: int | Tensor, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers by the Box-Muller transform.

    As ``uniform``, but ``key`` may also be (B,) int64, one a sample. The transform runs
    in float64, so devices differ by the last bit of a logarithm or a cosine at most.
    """
    n = math.prod(shape)
    u, v = _unit(_words(key, ids, n + n % 2)).unflatten(1, (-1, 2)).unbind(-1)
    radius = (-2.0 * torch.log1p(-u)).sqrt()  # 1 - u is in (0, 1]: never log(0)
    angle = 2.0 * math.pi * v
    z = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
    return z.flatten(1)[:, :n].float().reshape(-1, *shape)


def integers(key: int, ids: Tensor, high: int, shape: tuple[int, ...] = ()) -> Tensor:
    """Uniform integers in [0, high): as ``uniform``, but (B, *shape) int64.

    ``high`` is 1 to 2**32 (then no value is favoured by more than one part in two
    million); ValueError otherwise.
    """
    if not 1 <= high <= 2**32:
        raise ValueError(f"high must be 1 to 2**32, not {high}.")
    unit = _unit(_words(key, ids, math.prod(shape)))
    return (unit * high).floor().long().reshape(-1, *shape)
