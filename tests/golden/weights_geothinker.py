"""Hash weights of the GeoThinker cases: those of ../weights.py, but with open gates.

An official gate starts at 0, which would hide everything that the interaction does.
"""

import torch

from tests.golden.weights import init_, unit_noise


@torch.no_grad()
def init_geo_(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """`*cross_attn.gate` (one number, no dimensions): 0.8 + 0.1 n, so tanh is about 0.66; all else by `init_`."""
    if name.endswith("cross_attn.gate"):
        return tensor.copy_((0.8 + 0.1 * unit_noise(name, tensor.shape)).to(tensor.dtype))
    return init_(name, tensor)
