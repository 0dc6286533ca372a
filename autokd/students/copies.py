"""Networks as they once were."""

from __future__ import annotations

import copy
from itertools import chain

from torch import Tensor, nn


def frozen_copy(network: nn.Module) -> nn.Module:
    """A copy in eval mode that learns nothing."""
    copied = copy.deepcopy(network).eval().requires_grad_(False)
    for part in copied.modules():
        part._forward_hooks.clear()  # of the tap, which would take what the copy says for what the network does
    return copied


def tensors_of(network: nn.Module) -> chain[Tensor]:
    """All that it is: parameters, then buffers."""
    return chain(network.parameters(), network.buffers())
