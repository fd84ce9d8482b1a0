"""Requests that may reach any process between batches, and that all of them must act on at the same batch.

Each process adds 1 for a signal that has reached it, and 1 for a state that is due, to a sum over the processes that is
taken with every step; whoever reads a sum above 0 acts on it. On a GPU it is read one step later.
"""

import time

import torch

from runtime import distributed, errors


class Requests:
    """To stop, because a signal has arrived, and to save the state, because `save_every` minutes have passed.

    Args:
        save_every: minutes between two states within an epoch; 0 asks for none.
    """

    def __init__(self, save_every: float, device: torch.device):
        self.save_every, self.device = save_every, device
        self.saved_at = time.monotonic()

    def exchange(self) -> torch.Tensor:
        """Float64 on the device, the same in all processes: above 0 if one is to stop, above 0 if one is to save."""
        due = 0 < self.save_every < (time.monotonic() - self.saved_at) / 60
        mine = (errors.pending() is not None, due)
        # Filled on the device: a copy from the host would wait for it.
        flags = [torch.full((1,), float(flag), dtype=torch.float64, device=self.device) for flag in mine]
        return distributed.mean(torch.cat(flags))

    def saved(self) -> None:
        """The state has just been saved."""
        self.saved_at = time.monotonic()
