"""A process whose requests wait for a server that is away ends when it is told to."""

import subprocess
import sys
import time

import pytest

from esr_eval.backends.remote import interruptible_sleep

NDIF = """
from esr_eval.backends.ndif.client import Client, Job
from esr_eval.backends.remote import RemoteArgs
client = Client(RemoteArgs(base_url="http://127.0.0.1:9", wait=120))
wait = lambda: client.run(Job("key", {}, b"payload"))
"""
VLLM = """
from esr_eval.backends.vllm.client import Server
from esr_eval.backends.remote import RemoteArgs
server = Server(RemoteArgs("http://127.0.0.1:9", wait=120))
wait = lambda: server.post_patiently("/v1/completions", {})
"""
REST = """
import threading, time
thread = threading.Thread(target=wait)
thread.start()
time.sleep(2)
print("waiting" if thread.is_alive() else "not waiting", flush=True)
"""


def test_a_nap_is_as_long_as_it_should_be():
    begun = time.monotonic()
    interruptible_sleep(0.5)
    assert 0.5 <= time.monotonic() - begun < 2


@pytest.mark.parametrize("client", [NDIF, VLLM], ids=["ndif", "vllm"])
def test_the_end_of_the_process_ends_the_waiting(client):
    with subprocess.Popen([sys.executable, "-c", client + REST], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"waiting\n"
        begun = time.monotonic()
        try:
            process.wait(timeout=60)
        finally:
            process.kill()
    assert time.monotonic() - begun < 20
