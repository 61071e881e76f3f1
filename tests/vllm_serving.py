"""Connections to a vLLM server under test."""


def connect(server, subject, sampler="esr", **remote):
    from esr_eval.backends.remote import RemoteArgs
    from esr_eval.backends.vllm.backend import VLLMBackend
    from esr_eval.subjects import find_subject

    runtime = (
        find_subject(subject).runtime().model_copy(update={"backend": "vllm", "sampler": sampler})
    )
    return VLLMBackend(runtime, RemoteArgs(**{"base_url": server.url, "wait": 300.0, **remote}))
