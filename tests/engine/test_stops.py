"""Stop signals of a run are noted whenever they come, and none is lost."""

import os
import signal
from types import SimpleNamespace

import pytest
import torch

from mmexpert.engine.stops import STOP_SIGNALS, Stops


def stops(processes=1):
    return Stops(SimpleNamespace(processes=processes, accelerator=SimpleNamespace(device=torch.device("cpu"))))


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_waits_for_the_next_place_where_the_run_may_end(number):
    passed = []
    with pytest.raises(SystemExit) as ended, stops() as one:
        one.end()
        send(number)
        passed.append("what was begun")
        one.end()
        passed.append("the next fold")
    assert ended.value.code == 128 + number and passed == ["what was begun"]


def test_a_signal_ends_what_is_only_being_built_at_the_very_line():
    passed = []
    with pytest.raises(SystemExit) as ended, stops() as one, one.at_once():
        send(signal.SIGUSR1)
        passed.append("the rest")
    assert ended.value.code == 138 and passed == []


def test_a_signal_that_came_before_the_building_lets_nothing_be_built():
    with pytest.raises(SystemExit), stops() as one:
        send(signal.SIGTERM)
        with one.at_once():
            pytest.fail("built")


def test_of_a_group_no_rank_leaves_the_building_alone(monkeypatch):
    with pytest.raises(SystemExit) as ended, stops(processes=2) as one:
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: None)
        with one.at_once():
            send(signal.SIGTERM)
        one.end()
    assert ended.value.code == 143


def test_what_another_process_was_told_ends_this_one_too(monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flag, op: flag.fill_(signal.SIGUSR2))
    with pytest.raises(SystemExit) as ended:
        stops(processes=2).end()
    assert ended.value.code == 140


def test_a_signal_too_late_to_stop_anything_still_ends_the_command_so_that_no_further_job_begins():
    with pytest.raises(SystemExit) as ended, stops():
        send(signal.SIGTERM)
    assert ended.value.code == 143


def test_an_error_is_not_hidden_by_a_signal():
    with pytest.raises(ValueError, match="a defect"), stops():
        send(signal.SIGTERM)
        raise ValueError("a defect")


def test_a_second_ctrl_c_waits_for_nothing_and_a_second_term_does():
    with pytest.raises(KeyboardInterrupt), stops():
        send(signal.SIGINT)
        send(signal.SIGINT)
        pytest.fail("went on")
    with pytest.raises(SystemExit), stops() as one:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        one.end()


def test_handlers_that_were_there_before_are_back_afterwards_and_called_once_for_the_signal_that_came():
    called = []
    before = {number: signal.signal(number, lambda number, _: called.append(number)) for number in STOP_SIGNALS}
    try:
        with stops():
            pass
        assert called == []
        with pytest.raises(SystemExit), stops():
            send(signal.SIGUSR1)
            assert called == []
        assert called == [signal.SIGUSR1]
        send(signal.SIGTERM)
        assert called == [signal.SIGUSR1, signal.SIGTERM]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
