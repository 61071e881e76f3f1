"""The loopback vLLM server for tests: one for the whole session, left alone if it ran before."""

import pytest


@pytest.fixture(scope="session")
def vllm_server():
    from esr_eval.serve.vllm import VLLMServer, install

    server = VLLMServer()
    ours = not server.running
    if ours:
        install()
        server.start("smollm2-135m")
    yield server
    if ours:
        server.stop()


@pytest.fixture(scope="session")
def vllm_backend(vllm_server):
    return connect(vllm_server, "smollm2-135m")


def connect(server, subject, **remote):
    from esr_eval.backends.vllm import VLLMBackend
    from esr_eval.remote import RemoteArgs
    from esr_eval.subjects import find_subject

    runtime = find_subject(subject).runtime().model_copy(update={"backend": "vllm"})
    return VLLMBackend(runtime, RemoteArgs(**{"base_url": server.url, "wait": 300.0, **remote}))
