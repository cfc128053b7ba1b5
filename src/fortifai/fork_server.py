"""Loaded first by the server that processes are forked from (`machine.process_context`)."""

import atexit
import os
import signal
import sys

_SERVER = os.getpid()


def _begin() -> None:
    if os.getppid() == _SERVER:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


# a module in the working folder is no library, whatever its name
if "" in sys.path:
    sys.path.remove("")
# a signal to all processes of a job is for the run to obey, and for the processes that it starts:
# blocked, it waits for one that is just being forked, where an ignored one would be lost
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.register_at_fork(after_in_child=_begin)
# what is loaded is not taken apart at the end, for which a run's own end would wait
atexit.register(os._exit, 0)
