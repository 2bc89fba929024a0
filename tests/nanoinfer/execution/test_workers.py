"""What a front door makes of its workers' ends; the workers are idle processes, and the test speaks for them."""

import signal
import socket
import subprocess
import threading
import time

import pytest
import torch

from nanoinfer import ConfigError, RequestError, WorkerError
from nanoinfer.execution import workers as module
from nanoinfer.execution.channel import Channel, Kind
from nanoinfer.execution.lifeline import beat_interval_s
from nanoinfer.execution.workers import Worker, Workers


@pytest.fixture
def front():
    """front(count, rank_timeout_s) -> (Workers, the channels' other ends)."""
    made = []

    def make(count, rank_timeout_s=10.0):
        pairs = [socket.socketpair() for _ in range(count)]
        listed = [
            Worker(f"rank {rank}", Channel(ours), subprocess.Popen(["sleep", "100"]))
            for rank, (ours, _) in enumerate(pairs)
        ]
        made.append(Workers(listed, rank_timeout_s=rank_timeout_s))
        return made[-1], [Channel(theirs) for _, theirs in pairs]

    yield make
    for workers in made:
        workers._finalizer()


def error(kind="RuntimeError", message="out of luck", *, lost_peer=False):
    return {"type": kind, "message": message, "traceback": "the traceback", "lost_peer": lost_peer}


def all_ended(workers):
    return all(worker.process.poll() is not None for worker in workers.all)


def test_answers_come_in_order_and_beats_are_no_answers(front):
    workers, theirs = front(2)
    for number in (1, 2):
        theirs[1].send(Kind.BEAT)
        theirs[1].send(Kind.TOKENS, integers=torch.tensor([number]))
    theirs[0].send(Kind.READY, {"fact": "yes"})
    assert [workers.receive(1, Kind.TOKENS).integers.tolist() for _ in range(2)] == [[1], [2]]
    assert workers.receive(0, Kind.READY).facts == {"fact": "yes"}


def test_the_cause_is_raised_though_its_victims_complain_first(front):
    workers, theirs = front(3)
    theirs[0].send(Kind.ERROR, error(message="connection closed by peer", lost_peer=True))
    theirs[2].send(Kind.ERROR, error("MemoryError", "no room"))
    with pytest.raises(WorkerError, match=r"rank 2 \(process \d+\) failed with MemoryError: no room\nthe traceback"):
        workers.receive(0, Kind.TOKENS)
    assert all_ended(workers)


def test_a_death_explains_the_peers_that_it_left(front):
    workers, theirs = front(2)
    theirs[0].send(Kind.ERROR, error(lost_peer=True))
    workers.all[1].process.send_signal(signal.SIGKILL)
    theirs[1].close()
    with pytest.raises(WorkerError, match=r"rank 1 .* was ended by SIGKILL; the system's memory may have run out"):
        workers.receive(0, Kind.TOKENS)
    assert all_ended(workers)


def test_a_worker_without_a_word_is_named_with_its_exit_status(front):
    workers, theirs = front(1)
    workers.all[0].process.terminate()
    theirs[0].close()
    with pytest.raises(WorkerError, match=r"rank 0 .* was ended by SIGTERM$"):
        workers.poll(5)
    with pytest.raises(WorkerError, match=r"the engine's processes have ended; make a new engine"):
        workers.send(0, Kind.CLOSE)


@pytest.mark.parametrize(("name", "kind"), [("ConfigError", ConfigError), ("RequestError", RequestError)])
def test_refusals_of_a_worker_are_raised_as_what_they_are(front, name, kind):
    workers, theirs = front(1)
    theirs[0].send(Kind.ERROR, error(name, "use another number"))
    with pytest.raises(kind, match=r"^use another number$"):
        workers.receive(0, Kind.READY)


def beat_on(channels, interval_s, stop):
    def beat():
        while not stop.wait(interval_s):
            for channel in channels:
                channel.send(Kind.BEAT)

    threading.Thread(target=beat, daemon=True).start()


def test_who_stops_beating_is_blamed_for_the_answer_of_another(front):
    workers, theirs = front(2, rank_timeout_s=0.8)
    theirs[0].send(Kind.BEAT)
    theirs[1].send(Kind.BEAT)
    stop = threading.Event()
    beat_on([theirs[0]], beat_interval_s(0.8), stop)
    with pytest.raises(WorkerError, match=r"rank 1 \(process \d+\) hangs: it has not given a sign of life for"):
        workers.receive(0, Kind.TOKENS)
    stop.set()
    assert all_ended(workers)


def test_a_step_without_end_is_ended_though_all_beat(front):
    workers, theirs = front(2, rank_timeout_s=0.8)
    stop = threading.Event()
    beat_on(theirs, beat_interval_s(0.8), stop)
    with pytest.raises(WorkerError, match=r"rank 0 has computed for 0\.8 s without a result, and all processes are"):
        workers.receive(0, Kind.TOKENS)
    stop.set()


def test_a_process_that_never_begins_is_not_waited_for_without_end(front, monkeypatch):
    monkeypatch.setattr(module, "FIRST_SIGN_S", 0.3)
    workers, _ = front(1, rank_timeout_s=0.2)
    with pytest.raises(WorkerError, match=r"rank 0 .* hangs"):
        workers.receive(0, Kind.READY, limited=False)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda end: end.connection.sendall(b"\xff" * 32), "the stream is damaged"),
        (lambda end: end.send(Kind.MEMORY), "sent MEMORY where TOKENS was due"),
    ],
)
def test_what_is_no_proper_answer_ends_the_run(front, spoil, message):
    workers, theirs = front(1)
    spoil(theirs[0])
    with pytest.raises(WorkerError, match=rf"rank 0.*{message}"):
        workers.receive(0, Kind.TOKENS)
    assert all_ended(workers)


def test_a_worker_that_takes_nothing_does_not_block_the_front_door(front):
    workers, _ = front(1, rank_timeout_s=0.5)
    with pytest.raises(WorkerError, match=r"rank 0 .* hangs"):
        workers.send(0, Kind.STEP, integers=torch.zeros(1 << 20, dtype=torch.int64))


def test_closing_asks_and_then_kills(front):
    workers, theirs = front(2, rank_timeout_s=0.5)
    begin = time.monotonic()
    workers.close()
    workers.close()
    assert time.monotonic() - begin < 5
    assert [end.receive().kind for end in theirs] == [Kind.CLOSE] * 2
    assert all_ended(workers)
