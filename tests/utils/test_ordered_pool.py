"""Results of threads come in order, few calls are pending at once, and no error is lost."""

import threading
import time

import pytest

from utils import ordered_pool
from utils.ordered_pool import OrderedPool


def slowest_first(number):
    time.sleep(0.02 / number)
    return number


def test_results_come_in_the_order_of_the_calls():
    found = []
    with OrderedPool(4, lambda arguments, future: found.append((*arguments, future.result()))) as pool:
        for number in range(1, 20):
            pool.submit(1, slowest_first, number)
    assert found == [(number, number) for number in range(1, 20)]


@pytest.mark.parametrize("size, expected", [(1, 4), (40, 2), (1000, 1)])
def test_few_calls_and_bytes_are_pending_at_once(size, expected, monkeypatch):
    monkeypatch.setattr(ordered_pool, "MAX_PENDING_BYTES", 100)
    begun, done, most = 0, 0, 0

    def finished(arguments, future):
        nonlocal done
        done += 1

    with OrderedPool(2, finished) as pool:
        for _ in range(12):
            pool.submit(size, time.sleep, 0.005)
            begun += 1
            most = max(most, begun - done)
    assert done == 12 and most == expected


def test_an_error_of_a_thread_ends_the_block():
    def fail(number):
        if number == 3:
            raise OSError("the disk is full")

    begun = []
    with (
        pytest.raises(OSError, match="the disk is full"),
        OrderedPool(2, lambda arguments, future: future.result()) as pool,
    ):
        for number in range(100):
            pool.submit(1, fail, number)
            begun.append(number)
    assert len(begun) < 100


def test_after_an_error_finished_calls_are_reported_and_the_others_cancelled():
    found, begun, go_on = [], threading.Event(), threading.Event()

    def work(number):
        begun.set()
        go_on.wait()
        return number

    with pytest.raises(KeyboardInterrupt), OrderedPool(1, lambda _, future: found.append(future.result())) as pool:
        pool.submit(1, work, 1)
        pool.submit(1, work, 2)
        begun.wait()
        threading.Timer(0.05, go_on.set).start()
        raise KeyboardInterrupt
    assert found == [1]
