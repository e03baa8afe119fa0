"""The slow cable: delay, rate and the queue's end."""

import pytest

from gb10_lab.two_nodes.cable import LONGEST_QUEUE, Way


def test_a_packet_comes_out_after_the_delay() -> None:
    way = Way(delay=0.02, rate=10e6)
    assert way.due is None
    assert way.put(b"x" * 1250, now=5.0)
    assert way.due == pytest.approx(5.0 + 0.001 + 0.02)
    assert way.take(5.0205) == []
    assert way.take(5.0211) == [b"x" * 1250]
    assert way.due is None


def test_packets_wait_for_the_line_and_keep_their_order() -> None:
    way = Way(delay=0.02, rate=10e6)
    packets = [bytes([number]) * 1250 for number in range(20)]
    assert all(way.put(packet, now=1.0) for packet in packets)
    half = way.take(1.0 + 0.02 + 0.0101)
    assert half == packets[:10]
    assert way.take(1.0 + 0.02 + 0.0201) == packets[10:]
    # The line is free again: no wait from before.
    way.put(packets[0], now=3.0)
    assert way.due == pytest.approx(3.021)


def test_a_full_queue_drops() -> None:
    way = Way(delay=1.0, rate=1e9)
    taken = [way.put(b"x", now=0.0) for _ in range(LONGEST_QUEUE + 3)]
    assert taken == [True] * LONGEST_QUEUE + [False] * 3
