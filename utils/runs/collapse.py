"""Detects that a training has collapsed: the network has lost what it had learned (docs/collapse.md)."""

from collections.abc import Iterable, Mapping

PATIENCE = 10  # epochs in a row


class CollapseDetector:
    """Sees every epoch. One is low if its training loss is more than twice the lowest so far, or its mIoU, where it has
    one, less than half of the highest. A run has collapsed after PATIENCE low epochs in a row.

    Both are compared, because a network that has forgotten everything but where lesions mostly lie still has half of a
    good mIoU."""

    def __init__(self) -> None:
        self.lowest_loss, self.highest_miou = float("inf"), 0.0
        self.low: list[int] = []  # the latest low epochs, in a row
        self.since: int | None = None  # the first of the low epochs of a collapsed run

    def replay(self, rows: Iterable[Mapping[str, str]]) -> None:
        """Add the epochs before a resume: the rows of metrics.csv."""
        for row in rows:
            self.add_epoch({name: float(value) for name, value in row.items() if value})

    def add_epoch(self, row: Mapping[str, float]) -> bool:
        """Add an epoch. Return whether the run has collapsed with it."""
        loss, miou = row["train_loss"], row.get("miou")
        improves = loss < self.lowest_loss
        self.lowest_loss = min(self.lowest_loss, loss)
        self.highest_miou = max(self.highest_miou, miou or 0)
        is_low = loss > 2 * self.lowest_loss or (miou is not None and miou < self.highest_miou / 2)
        is_low = is_low and not improves  # a network that has just begun may find nothing for a while
        self.low = [*self.low, int(row["epoch"])] if is_low else []
        if self.since is None and len(self.low) >= PATIENCE:
            self.since = self.low[0]
            return True
        return False

    @property
    def sentence(self) -> str:
        return (
            f"lost what it had learned: from epoch {self.since} on, for {PATIENCE} epochs in a row, its training loss "
            "was more than twice the lowest or its mIoU less than half of the highest"
        )
