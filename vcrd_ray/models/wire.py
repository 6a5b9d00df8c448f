"""Tensors <-> numpy arrays for the object store, which passes arrays without a copy. Knows bfloat16, which numpy does not."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def to_wire(tensor: torch.Tensor) -> npt.NDArray[np.generic]:
    """The same values as an array; bfloat16 as its bits in uint16."""
    tensor = tensor.detach().cpu().contiguous()
    array: npt.NDArray[Any] = tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
    return array


def from_wire(array: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """Inverse of `to_wire`. The array may be read-only; the tensor must not be written to when it stays on the CPU."""
    with warnings.catch_warnings():
        # Arrays from the object store are read-only; torch warns of that, and nothing here writes to signals.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    if array.dtype == np.uint16:
        tensor = tensor.view(torch.bfloat16)
    return tensor.to(device)
