"""Random numbers depend on key and id alone, and equal SplitMix64 in plain Python."""

import math

import pytest
import torch

from ip2p_lib import rng

IDS = torch.tensor([0, 1, 2, 7, -3, 10**12])
MASK = 2**64 - 1


def finalise(x):
    """SplitMix64's finaliser on Python's unbounded integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def word(key, sample, counter):
    gamma = 0x9E3779B97F4A7C15
    row = finalise(finalise((sample * gamma + key) & MASK))
    column = finalise(((counter + 1) * gamma + (key ^ 0xBF58476D1CE4E5B9)) & MASK)
    return finalise((row + column) & MASK)


def test_uniform_is_splitmix64_bit_for_bit():
    key = rng.key("test", 3)
    expected = [
        [(word(key, i, j) >> 40) / 2**24 for j in range(6)] for i in IDS.tolist()
    ]
    drawn = rng.uniform(key, IDS, (2, 3))
    assert drawn.dtype == torch.float32 and drawn.flatten(1).tolist() == expected
    assert rng.uniform(key, IDS).tolist() == [row[0] for row in expected]


def test_normal_is_box_muller_on_those_bits():
    key = rng.key("test", 4)
    u, v = (word(key, 7, j) / 2**64 for j in (2, 3))
    radius = math.sqrt(-2 * math.log(1 - u))
    expected = [radius * math.cos(2 * math.pi * v), radius * math.sin(2 * math.pi * v)]
    drawn = rng.normal(key, IDS, (5,))[3, 2:4].tolist()
    assert drawn == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("draw", [rng.uniform, rng.normal])
def test_a_row_depends_on_its_own_id_only(draw):
    key, shape = rng.key(1, "noise", 5), (4, 3, 3)
    whole = draw(key, IDS, shape)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(draw(key, IDS[order], shape), whole[order])
    assert torch.equal(draw(key, IDS[2:3], shape)[0], whole[2])
    assert torch.equal(draw(key, IDS, (5,)), whole.flatten(1)[:, :5])


def test_normal_numbers_are_normal():
    z = rng.normal(rng.key("bell"), torch.arange(2000), (50,)).double().flatten()
    assert z.mean().abs() < 4 / math.sqrt(z.numel())
    assert (z.var() - 1).abs() < 4 * math.sqrt(2 / z.numel())
    expected = torch.special.ndtr(z.sort().values)
    empirical = (torch.arange(z.numel()) + 0.5) / z.numel()
    assert (expected - empirical).abs().max() < 1.95 / math.sqrt(z.numel())  # 0.1 %


OTHERS = {
    "next step": (rng.key(0, "noise", 2), 0),
    "other purpose": (rng.key(0, "target", 1), 0),
    "other run": (rng.key(1, "noise", 1), 0),
    "next sample": (rng.key(0, "noise", 1), 1),
    "next key": (rng.key(0, "noise", 1) + 1, 0),
}


@pytest.mark.parametrize("other", OTHERS)
def test_neighbouring_draws_are_independent(other):
    (key, shift), n = OTHERS[other], 50
    a = rng.normal(rng.key(0, "noise", 1), torch.arange(n), (1000,)).double()
    b = rng.normal(key, torch.arange(n) + shift, (1000,)).double()
    assert (a * b).mean().abs() < 4 / math.sqrt(a.numel())
    assert (a**2 * b**2).mean() - 1 < 4 * math.sqrt(8 / a.numel())


def test_integers_cover_their_range_evenly():
    values = rng.integers(rng.key("t"), torch.arange(100_000), 10)
    counts = values.bincount(minlength=10)
    assert len(counts) == 10
    assert ((counts - 10_000).abs() < 4 * math.sqrt(10_000 * 0.9)).all()


def test_keys_tell_their_parts_apart_and_never_change():
    parts = [(1, 2), (12,), ("12",), ("1", "2"), ("1", 2), (2, 1), (), ("1,2",), (-1,)]
    keys = {rng.key(*p) for p in parts}
    assert len(keys) == len(parts) and all(0 <= k < 2**63 for k in keys)
    # A changed key would change every data set and training run without a word.
    assert rng.key(0, "noise", 3) == 7346017372464610397
    assert rng.key("猫") == 9096346625209157350


def test_the_global_generator_is_not_touched():
    before = torch.get_rng_state()
    rng.normal(1, IDS, (4,))
    rng.uniform(1, IDS)
    rng.integers(1, IDS, 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_drawn_is_refused():
    for part in (0.5, None, (1,), torch.tensor(1)):
        with pytest.raises(TypeError, match="int and str"):
            rng.key("noise", part)
    for ids in (torch.arange(3.0), torch.arange(4).reshape(2, 2)):
        with pytest.raises(ValueError, match="ids must be int64"):
            rng.uniform(1, ids)
    for high in (0, 2**32 + 1):
        with pytest.raises(ValueError, match="high must be"):
            rng.integers(1, IDS, high)
