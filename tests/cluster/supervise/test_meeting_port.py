"""Where the ranks of a start meet: a port of its own, and none that is taken."""

import socket

from cluster.supervise.supervisor import meeting_port


def test_starts_meet_on_ports_of_their_own() -> None:
    starts = [f"/runs/{run}/launch {job} {restart}" for run in "ab" for job in (2, 3) for restart in (0, 1)]
    ports = [meeting_port(start) for start in starts]
    assert len(set(ports)) == len(starts) and all(10_000 <= port < 30_000 for port in ports)


def test_a_port_that_is_taken_is_passed_over() -> None:
    with socket.socket() as other:
        other.bind(("", meeting_port("one")))
        other.listen()
        assert meeting_port("one") != other.getsockname()[1]
