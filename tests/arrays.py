"""What is measured of notes on a device, for notes that are arrays."""

import numpy as np
import torch
from torch import Tensor

from cf_core.melody import MelodyFormat
from evaluation.statistics import compute_statistics


def lift(left: np.ndarray, right: np.ndarray) -> tuple[Tensor, Tensor]:
    """Both halves as tensors."""
    return torch.as_tensor(left), torch.as_tensor(right)


def find_statistics(tokens: np.ndarray, form: MelodyFormat) -> dict[str, np.ndarray]:
    """`compute_statistics`, by arrays."""
    found = compute_statistics(torch.as_tensor(tokens), form)
    return {name: values.numpy() for name, values in found.items()}
