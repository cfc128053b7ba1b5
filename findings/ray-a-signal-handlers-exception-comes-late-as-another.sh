#!/usr/bin/env bash
# Ray 2.60.0: an exception raised by a signal's handler while ray.wait or ray.get waits comes out
# as a SystemError, and only when the wait has ended by itself.
#
# Python's own waits (time.sleep, a lock, select) return as soon as a handler raises, and it is the
# handler's exception that comes. In Ray the wait goes on to its timeout, here five seconds though
# the signal comes after one, and what is raised is "SystemError: ... returned a result with an
# exception set", with the handler's as its cause. Whoever turns SIGTERM into an orderly end by
# raising, as preempted jobs do, is not stopped in time by a long wait, and does not catch what they
# raised. Waits of a tenth of a second, and a look at the cause, help.
#
# Ends with 0 while both calls do so, and with 1 when either raises the handler's own exception or
# comes back before its timeout.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet ray==2.60.0
cd "$folder"
"$folder/env/bin/python" - <<'PY'
import os
import signal
import sys
import threading
import time

import ray


class Preempted(BaseException):
    """What the handler raises."""


def leave(*_):
    raise Preempted


ray.init(
    address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR",
    log_to_driver=False,
)
signal.signal(signal.SIGTERM, leave)  # after init, which sets one of its own


@ray.remote
def work():
    time.sleep(30)


ref = work.remote()
as_found = []
calls = {
    "ray.wait": lambda: ray.wait([ref], timeout=5),
    "ray.get": lambda: ray.get(ref, timeout=5),
}
for name, call in calls.items():
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    began = time.monotonic()
    try:
        call()
    except BaseException as error:
        took = time.monotonic() - began
        cause = type(error.__cause__).__name__
        print(f"{name}: {type(error).__name__}, cause {cause}, after {took:.1f} s")
        as_found.append(type(error) is SystemError and cause == "Preempted" and took > 4)
ray.shutdown()
sys.exit(0 if as_found == [True, True] else 1)
PY
