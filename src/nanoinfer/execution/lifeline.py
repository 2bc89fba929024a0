"""A worker's lifeline: it says now and then that it lives, and ends the process when nobody is left to hear it.

It runs in a thread of its own, because the main thread may wait without end for a device or a lost peer.
"""

from __future__ import annotations

import os
import select
import threading
from typing import TYPE_CHECKING

from nanoinfer.execution.channel import ChannelClosedError, Kind

if TYPE_CHECKING:
    from nanoinfer.execution.channel import Channel

BEATS_A_TIMEOUT = 8  # so many beats must be lost before a worker counts as silent
LONGEST_INTERVAL_S = 2.0
ORPHANED = 71  # exit status of a worker whose front door is gone


def beat_interval_s(rank_timeout_s: float) -> float:
    """Return how often a worker says that it lives."""
    return min(LONGEST_INTERVAL_S, rank_timeout_s / BEATS_A_TIMEOUT)


def start_lifeline(channel: Channel, *, interval_s: float, parent: int | None) -> None:
    """Beat from now on; leave at once when the channel hangs up or process `parent`, if given, is no longer ours."""
    watch = select.poll()
    watch.register(channel, select.POLLRDHUP)  # and, always, errors and hang-ups

    def beat() -> None:
        while not watch.poll(interval_s * 1000):
            if parent is not None and os.getppid() != parent:
                break
            try:
                channel.send(Kind.BEAT)
            except (ChannelClosedError, OSError):
                break
        os._exit(ORPHANED)

    threading.Thread(target=beat, name="lifeline", daemon=True).start()
