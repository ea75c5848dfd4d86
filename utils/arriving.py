"""Numbers that a GPU computes, read without waiting for more than that."""

import torch


class Arriving:
    """A number on its way from the device to the CPU. Reading it waits for what the device was given before, not for
    what it was given since: the CPU sees the loss while a GPU is busy with the backward pass, and has the next step
    ready in time."""

    def __init__(self, number: torch.Tensor):
        self.number = number.detach().to("cpu", non_blocking=number.is_cuda)
        self.event = torch.cuda.Event() if number.is_cuda else None
        if self.event is not None:
            self.event.record(torch.cuda.current_stream(number.device))

    def item(self) -> int | float:
        if self.event is not None:
            self.event.synchronize()
        return self.number.item()
