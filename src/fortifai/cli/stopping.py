"""Leaving on SIGTERM and SIGINT, within seconds and with what was committed."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from fortifai.errors import Stopped

GRACE = 2.0
"""Seconds to leave in; a process that is deep in a computation is then ended as it is."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise `Stopped` inside the block on a signal, and end the process if that is of no avail.

    Python calls a handler between two of its own instructions, which a long computation in a
    library puts off; what a handler writes to the wakeup socket reaches the thread at once.
    """
    reading, writing = socket.socketpair()
    writing.setblocking(False)

    def stop(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # once is enough
        raise Stopped(number)

    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, stop) for number in signals}
    wakeup = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_insist, args=(reading, signals), daemon=True).start()
    leaving = False
    try:
        yield
    except Stopped:
        leaving = True  # the thread stays on guard
        raise
    finally:
        if not leaving:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)
            writing.close()


def _insist(reading: socket.socket, signals: tuple[int, ...]) -> None:
    with reading:
        while told := reading.recv(1):
            if told[0] in signals:
                time.sleep(GRACE)
                for child in psutil.Process().children(recursive=True):
                    with suppress(psutil.Error):  # gone by itself
                        child.kill()
                os._exit(128 + told[0])
