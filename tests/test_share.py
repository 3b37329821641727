"""How the pieces of a call are shared: each is done once, and errors elsewhere are raised."""

import threading

import pytest

import cdropout as cd
from cdropout.core.threads import share


@pytest.fixture(autouse=True)
def three_threads():
    before = cd.get_num_threads()
    cd.set_num_threads(3)
    yield
    cd.set_num_threads(before)


def test_each_piece_is_done_once():
    done = []
    share(done.append, 100)
    assert sorted(done) == list(range(100))


def test_an_error_in_another_thread_is_raised_and_the_next_call_works():
    caller = threading.current_thread()
    reached = threading.Event()

    def work(piece):
        if threading.current_thread() is caller:
            assert reached.wait(60)  # so that a thread of the pool has a piece of its own
        else:
            reached.set()
            raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        share(work, 2)
    test_each_piece_is_done_once()


def test_an_error_in_the_caller_is_raised():
    def work(piece):
        raise ValueError(f"piece {piece}")

    with pytest.raises(ValueError, match="piece"):
        share(work, 1)
