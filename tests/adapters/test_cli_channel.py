"""Messages between the two processes of ``run`` and ``hold``: whole or not at all, and never waited for."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from actors import wait_until
from nfsrwlock.cli.channel import Channel


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    one, other = map(Channel, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    yield one, other
    one.close()
    other.close()


def test_what_finds_no_room_is_not_sent_and_all_else_arrives_whole_and_in_order(pair: tuple[Channel, Channel]) -> None:
    here, there = pair
    sent = 0
    while here.send((sent, "x" * 9000)):
        sent += 1
    assert [number for number, _ in there.receive()] == [*range(sent)]  # type: ignore[misc]
    assert here.send("there is room again")
    assert there.receive() == ["there is room again"]


def test_news_leave_room_for_what_is_said_only_once(pair: tuple[Channel, Channel]) -> None:
    here, there = pair
    while here.send_news("news"):
        pass
    assert all(here.send(number) for number in range(100))
    assert [said for said in there.receive() if said != "news"] == [*range(100)]
    assert here.send_news("news")


def test_the_last_words_of_one_that_has_gone_are_heard_although_it_left_something_unread(
    pair: tuple[Channel, Channel],
) -> None:
    here, there = pair
    here.send("unread")
    there.send("first")
    there.send("last")
    there.close()
    assert here.receive() == ["first", "last"]
    assert (here.closed, here.send("anything")) == (True, False)


def test_a_signal_s_handler_may_send_in_the_middle_of_another_message(pair: tuple[Channel, Channel]) -> None:
    here, there = pair
    former = signal.signal(signal.SIGALRM, lambda *_: here.send("from the handler"))
    heard: list[object] = []
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        while heard.count("from the handler") < 50:
            here.send("word")
            heard += there.receive()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert {*heard} == {"word", "from the handler"}


def test_the_death_of_the_other_process_closes_it(pair: tuple[Channel, Channel]) -> None:
    here, there = pair
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    there.close()
    os.waitpid(pid, 0)
    wait_until(lambda: here.receive() == [] and here.closed)
