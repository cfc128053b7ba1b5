"""Loaded by the server alone that processes are forked from (`machine.process_context`)."""

import atexit
import gc
import os
import signal

# that of a job's end goes to all its processes, and those that are forked are ended by their parent
signal.signal(signal.SIGTERM, signal.SIG_IGN)
# what is loaded is not taken apart at the end, for which a run's own end would wait
atexit.register(os._exit, 0)
# nor is it written to by the garbage collections of those that share it
gc.freeze()
