"""Random numbers that depend on nothing but a seed and the purpose of the draw."""

from hashlib import blake2b

import torch
from torch import Generator


def derive(seed: int, *purpose: str | int) -> int:
    """Derive a 63-bit seed from `seed` and a purpose, such as `derive(0, "fusion", step)`."""
    words = "\x1f".join(str(word) for word in (seed, *purpose))
    return int.from_bytes(blake2b(words.encode(), digest_size=8).digest()) >> 1


def make_random(seed: int, *purpose: str | int, device: torch.device | str = "cpu") -> Generator:
    """Make a random generator for one purpose. CPUs and GPUs draw different numbers.

    Trainers make a new one for every step, so that no generator state is part of a checkpoint and
    a resumed run draws what an uninterrupted one would have drawn.
    """
    return Generator(device).manual_seed(derive(seed, *purpose))
