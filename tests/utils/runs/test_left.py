import logging

import pytest

from utils.runs import left
from utils.runs.left import TimeLeft, words


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(left, "time", clock)
    return clock


def test_a_run_of_days_is_warned_of_once_after_a_few_steps(clock):
    """100 epochs of 1000 steps of 10 s: 11.6 days. The first step, which compiles, does not count."""
    taken, said = TimeLeft(steps=1000, epochs=100), []
    taken.begin(0)
    for step in range(20):
        clock.now += 100 if step == 0 else 10
        taken.step(epoch=0)
        said.append(taken.news())
    ((level, warning),) = filter(None, said)
    assert level == logging.WARNING
    assert warning.startswith("training takes about 11 days 14 h from here on; it can be stopped and resumed")


def test_epochs_of_few_steps_are_warned_of_after_the_first(clock):
    taken = TimeLeft(steps=2, epochs=300)
    taken.begin(0)
    for _ in range(2):
        clock.now += 300
        taken.step(epoch=0)
    assert taken.news() is None
    assert taken.finish_epoch(1) == "2 days 2 h left" and taken.news() is not None


@pytest.mark.parametrize("seconds, expected", [(10, ["training takes about 13 h 53 min from here on"]), (0.05, [])])
def test_of_a_run_of_hours_it_is_said_once_if_the_first_epoch_is_slow(clock, seconds, expected):
    taken, said = TimeLeft(steps=1000, epochs=5), []
    taken.begin(0)
    for _ in range(400):
        clock.now += seconds
        taken.step(epoch=0)
        said.append(taken.news())
    assert [news for news in said if news] == [(logging.INFO, text) for text in expected]


def test_the_time_left_is_that_of_the_last_epochs(clock):
    taken, said = TimeLeft(steps=4, epochs=4), []
    for epoch, seconds in enumerate((900, 600, 600, 600), 1):
        taken.begin(0)
        clock.now += seconds
        said.append(taken.finish_epoch(epoch))
    assert said == ["45 min left", "20 min left", "10 min left", "the last"]


def test_an_epoch_that_was_gone_on_with_does_not_count(clock):
    taken = TimeLeft(steps=4, epochs=9)
    taken.begin(3)
    clock.now += 1
    assert taken.finish_epoch(1) == "time left unknown"


@pytest.mark.parametrize(
    "seconds, text",
    [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (6000, "1 h 40 min"), (100000, "27 h 47 min"), (200000, "2 days 8 h")],
)
def test_durations_have_two_units_at_most(seconds, text):
    assert words(seconds) == text
