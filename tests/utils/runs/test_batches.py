import itertools
import time

import pytest
import torch

from utils.runs.batches import USAGE, Batches, peak_memory


class SlowLoader:
    dataset = range(6)

    def __len__(self):
        return 3

    def __iter__(self):
        for batch in itertools.count():
            time.sleep(0.03)
            yield batch


def epoch(batches):
    """All that remains of the present epoch; then the next one begins."""
    found = list(batches)
    batches.next_epoch()
    return found


def test_waiting_is_told_from_working():
    batches = Batches(SlowLoader(), losses=[0.5])  # the first batch is done
    assert len(batches) == 3
    assert [epoch(batches) for _ in range(3)] == [[0, 1], [2, 3, 4], [5, 6, 7]]
    list(map(batches.record, batches))
    idle = batches.usage(torch.device("cpu"))
    assert idle["waiting_share"] > 0.9 and 20 < idle["images_per_second"] < 67  # 6 images in 0.09 s or more
    batches.next_epoch()
    for batch in batches:
        time.sleep(0.09)
        batches.record(batch)
    busy = batches.usage(torch.device("cpu"))
    assert 0.1 < busy["waiting_share"] < 0.5
    assert {"seconds", *busy} == set(USAGE)


def test_an_epoch_that_was_stopped_after_its_last_batch_has_a_usage_too():
    batches = Batches(SlowLoader(), losses=[0.5, 0.4, 0.3])
    assert list(batches) == []
    usage = batches.usage(torch.device("cpu"))
    assert usage["images_per_second"] == usage["waiting_share"] == 0
    assert {"seconds", *usage} == set(USAGE) and batches.mean_loss == pytest.approx(0.4)


def test_memory_of_the_process_is_in_bytes():
    assert 50e6 < peak_memory(torch.device("cpu")) < 1e12
