"""The batch of a training step that several processes share: rank r has every world_size-th image, from the r-th on."""

from collections.abc import Sequence

_shares: list[int] = []  # shared by all threads: a backward pass may recompute layers in another thread
_rank = [0]


def share_batch(shares: Sequence[int], rank: int) -> None:
    """Set the number of images that each rank has of the next batch, and this process's rank; [] for one process."""
    _shares[:], _rank[:] = shares, [rank]


def whole_batch(images: int) -> tuple[int, slice]:
    """Return the size of the batch of which this process has `images` images, and their places in the batch.

    If each process draws random numbers for the whole batch from equal seeds, they equal those of one process."""
    if not _shares or _shares[_rank[0]] != images:
        return images, slice(None)
    return sum(_shares), slice(_rank[0], None, len(_shares))
