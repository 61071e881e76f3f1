"""Waiting for servers in worker threads, without keeping a process alive that wants to end."""

import threading
import time

STEP_SECONDS = 0.2


def nap(seconds: float) -> None:
    """Sleep as long as the process goes on.

    An interrupted evaluation gives its requests up, but at its end the interpreter waits for every
    thread, and one that is patient with a server would take minutes.

    Raises:
        InterruptedError: The process is about to end.
    """
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        # The main thread counts as ended from where the interpreter begins to wait for the others.
        if not threading.main_thread().is_alive():
            raise InterruptedError("The process ends, so the server is not waited for.")
        time.sleep(min(left, STEP_SECONDS))
