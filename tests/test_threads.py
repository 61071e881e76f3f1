"""Threads beside each other: what is made once, and whose turn is short."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from esr_eval._util.threads import MadeOnce, threads_taking_short_turns
from esr_eval.scorers import turns
from esr_eval.scorers.phrases import find_restarts


def test_threads_that_ask_at_once_get_one_and_the_same():
    made, ready = [], threading.Barrier(8)

    def make():
        time.sleep(0.05)
        made.append(object())
        return made[-1]

    def ask(_):
        ready.wait()
        return one()

    one = MadeOnce(make)
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1 == len(made)
    one.cache_clear()
    assert one() is made[1]


def test_answers_that_are_judged_together_load_one_reader(monkeypatch):
    load, loaded = turns.lower_layers, []
    monkeypatch.setattr(turns, "lower_layers", lambda of: loaded.append(of) or load(of))
    turns.turn_reader.cache_clear()
    answers = [f"The tide comes in {n} times. Crabs hide. But wait, once more." for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda answer: find_restarts(answer, "Explain the tides."), answers))
    assert len(loaded) == 1


def test_turns_are_short_until_the_last_that_computes_has_ended():
    usual = sys.getswitchinterval()
    first, second = threads_taking_short_turns(), threads_taking_short_turns()
    first.__enter__()
    short = sys.getswitchinterval()
    second.__enter__()
    first.__exit__(None, None, None)
    assert short == sys.getswitchinterval() < usual
    second.__exit__(None, None, None)
    assert sys.getswitchinterval() == usual
