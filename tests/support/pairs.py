"""A small data set of pairs, as the tests of everything around it need one."""

import resource
from contextlib import contextmanager

import numpy as np
from PIL import Image

from ip2p_lib.dataset import Pair


def make_pair(i, size=16, **changes):
    """Noise with the texts of triplet i // 2: two pairs in a row share a triplet."""
    before, after = np.random.default_rng(i).integers(0, 256, (2, size, size, 3), "u1")
    fields = {
        "key": f"{i:06d}",
        "before": Image.fromarray(before),
        "after": Image.fromarray(after),
        "caption": f"一只猫 {i // 2}, a cat",
        "instruction": f"make it {i // 2}",
        "edited_caption": f"a dog {i // 2}",
        "seed": 2**47 + i,
        "p": 0.1 + i / 100,
        "cfg_scale": 7.5,
        "steps": 25,
        "word_edit": {"kind": "refine", "tau": 0.5} if i % 2 else {},
        "scores": {"image": 0.75, "before": 0.2, "after": 0.25, "direction": i / 50},
    }
    return Pair(**fields | changes)


def fields_of(pair):
    """All that a pair holds but its images."""
    return {k: v for k, v in vars(pair).items() if k not in ("before", "after")}


def same(a, b):
    """Whether two pairs are the same, bit for bit."""
    return fields_of(a) == fields_of(b) and all(
        np.array_equal(getattr(a, side), getattr(b, side))
        for side in ("before", "after")
    )


def psnr(a, b):
    """Peak signal-to-noise ratio of two images, in dB."""
    error = np.mean((np.asarray(a, "f8") - np.asarray(b, "f8")) ** 2)
    return 10 * np.log10(255**2 / error)


def tree(folder):
    """The bytes of every file below a folder."""
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@contextmanager
def file_size_limit(size):
    """No file may grow past ``size`` bytes: as a disk that fills up at that point."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
