"""Hash weights of Qwen3.5-based cases: those of ../weights.py, but for two kinds of parameters.

Qwen3.5's text norms multiply by 1 + weight, so 1 + 0.1 n would double all activations; and a decay of about 1/2 a token
(A_log = 0.1 n) would forget the images before the question.
"""

import re

import torch

from tests.golden.weights import init_, unit_noise

ZERO_CENTRED = re.compile(
    r"model\.language_model\.(norm|layers\.\d+\.(input_layernorm|post_attention_layernorm|self_attn\.[qk]_norm))\.weight"
)


@torch.no_grad()
def init35_(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Fill `tensor` in place. Rules, first match wins (n = unit_noise):
    zero-centred norms of the decoder   0.1 n             (not linear_attn.norm: that one multiplies by its weight)
    *.A_log                             -1.5 + 0.3 n
    everything else                     as `weights.init_`
    """
    if ZERO_CENTRED.fullmatch(name):
        return tensor.copy_(0.1 * unit_noise(name, tensor.shape))
    if name.endswith(".A_log"):
        return tensor.copy_(-1.5 + 0.3 * unit_noise(name, tensor.shape))
    return init_(name, tensor)
