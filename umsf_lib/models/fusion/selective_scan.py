"""The selective scan of state space models, in parallel and in plain PyTorch (Gu & Dao 2023).

A token's state is the decayed state of the token before, plus what the token adds itself. Decay and
addition depend on the token, so the scan selects what it remembers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def selective_scan(
    tokens: Tensor, step: Tensor, rate: Tensor, write: Tensor, read: Tensor, skip: Tensor
) -> Tensor:
    """Scan sequences of L tokens of D channels, each channel with a state of N numbers.

    h_t = exp(step_t rate) h_(t-1) + step_t write_t u_t, from h = 0; y_t = <read_t, h_t> + skip u_t.

    Args:
        tokens: u ``(L, ..., D)``.
        step: ``(L, ..., D)``, positive.
        rate: ``(..., N, D)``, negative.
        write: ``(L, ..., N)``.
        read: ``(L, ..., N)``.
        skip: ``(..., D)``.

    Returns:
        y ``(L, ..., D)``.
    """
    decay = torch.exp(step[..., None, :] * rate)  # (L, ..., N, D)
    added = (step * tokens)[..., None, :] * write[..., None]  # (L, ..., N, D)
    states: Tensor = LinearScan.apply(decay, added)
    return (states * read[..., None]).sum(dim=-2) + skip * tokens


class LinearScan(torch.autograd.Function):
    """h_t = decay_t h_(t-1) + added_t along the first dimension, from h = 0.

    Its gradient is the same recurrence from the end, so nothing but the states is kept for it.
    """

    @staticmethod
    def forward(ctx: Any, decay: Tensor, added: Tensor) -> Tensor:
        """Compute the states ``(L, ...)`` from ``decay`` and ``added``, ``(L, ...)`` each."""
        states = _scan(decay, added)
        ctx.save_for_backward(decay, states)
        return states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the gradients of ``decay`` and ``added`` from that of the states."""
        decay, states = ctx.saved_tensors
        of_added = _scan_back(decay, grads[0])
        of_decay = torch.zeros_like(of_added)  # the first decays nothing
        of_decay[1:] = of_added[1:] * states[:-1]
        return of_decay, of_added


def _scan(decay: Tensor, added: Tensor) -> Tensor:
    """Compute the states by odd-even reduction (Blelloch 1990): log2(L) levels of half the length.

    Two tokens act like one: it decays by the product of both decays. The scan over these pairs
    gives the states at odd places, and each even place follows the odd one before it.
    """
    if len(added) == 1:
        return added
    end = len(added) // 2 * 2
    even, odd, later = slice(0, end, 2), slice(1, end, 2), slice(2, None, 2)
    pairs = _scan(decay[even] * decay[odd], torch.addcmul(added[odd], decay[odd], added[even]))
    states = torch.empty_like(added)
    states[0], states[odd] = added[0], pairs
    states[later] = torch.addcmul(added[later], decay[later], pairs[: len(added[later])])
    return states


def _scan_back(decay: Tensor, added: Tensor) -> Tensor:
    """Compute g_t = added_t + decay_(t+1) g_(t+1) as ``_scan`` does, but from the end.

    The scan over pairs, each of an odd place and the even one after it, gives g at odd places.
    """
    if len(added) == 1:
        return added
    end = len(added) // 2 * 2
    even, odd, later = slice(0, end, 2), slice(1, end, 2), slice(2, None, 2)
    found = added.clone()
    count = len(added[later])  # the last odd place may have no even one after it
    found[odd][:count].addcmul_(decay[later], added[later])
    together = decay[odd].clone()  # of an odd place and the even one before it
    together[1:] *= decay[even][1:]
    found[odd] = _scan_back(together, found[odd])
    found[even].addcmul_(decay[odd], found[odd])
    return found
