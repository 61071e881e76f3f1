import gc
import os
import weakref
from contextvars import Context
from functools import wraps
from pathlib import Path

# No test asks a hub, and threads that spin while waiting would slow each other down.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("INSPECT_DISPLAY", "none")

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function):
    """Every test in a context of its own: Inspect leaves a run's roles behind in the thread's."""
    test = pyfuncitem.obj

    @wraps(test)
    def alone(*args, **kwargs):
        return Context().run(test, *args, **kwargs)

    pyfuncitem.obj = alone
    return (yield)


@pytest.fixture(scope="module", autouse=True)
def weights_of_a_module():
    """Inspect keeps models for whoever asks again; a module's weights go when it ends."""
    from esr_eval.provider.api import ESRModelAPI

    living: weakref.WeakSet[ESRModelAPI] = weakref.WeakSet()
    made = ESRModelAPI.__init__

    def remembered(self, *args, **kwargs):
        made(self, *args, **kwargs)
        living.add(self)

    ESRModelAPI.__init__ = remembered
    yield
    ESRModelAPI.__init__ = made
    for api in list(living):
        api.close()
    gc.collect()


@pytest.fixture(autouse=True)
def requests_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that one test asked is answered from the cache in another."""
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "requests"))


@pytest.fixture
def run_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, where Inspect writes its logs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path / "logs"))
    return tmp_path


@pytest.fixture(scope="session")
def backend():
    """The embedded subject, loaded once for all tests that talk to the engine directly."""
    from esr_eval.backends.local import LocalBackend
    from esr_eval.subjects import find_subject

    return LocalBackend(find_subject("smollm2-135m").runtime(), device="cpu")


@pytest.fixture(scope="session")
def ndif_server(tmp_path_factory: pytest.TempPathFactory):
    """A real NDIF server on loopback with the embedded subject (marker ndif)."""
    from esr_eval.servers.ndif import NDIFServer

    server = NDIFServer(tmp_path_factory.mktemp("ndif"))
    server.start("smollm2-135m")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def ndif_backend(ndif_server):
    """The embedded subject on that server."""
    from esr_eval.backends.ndif.backend import NDIFBackend
    from esr_eval.backends.remote import RemoteArgs
    from esr_eval.subjects import find_subject

    runtime = find_subject("smollm2-135m").runtime().model_copy(update={"backend": "ndif"})
    return NDIFBackend(runtime, RemoteArgs(base_url=ndif_server.url, wait=300))


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory: pytest.TempPathFactory):
    """A real vLLM server on loopback with the embedded subject (marker vllm)."""
    from esr_eval.servers.vllm import VLLMServer

    server = VLLMServer(tmp_path_factory.mktemp("vllm"))
    server.start("smollm2-135m", layers=[20])
    yield server
    server.stop()


@pytest.fixture(scope="session")
def vllm_backend(vllm_server):
    """The embedded subject on that server."""
    from vllm_serving import connect

    return connect(vllm_server, "smollm2-135m")


@pytest.fixture(scope="session")
def vllm_compiled_backend(tmp_path_factory: pytest.TempPathFactory):
    """The same, compiled."""
    from vllm_serving import connect

    from esr_eval.servers.vllm import VLLMServer

    server = VLLMServer(tmp_path_factory.mktemp("vllm-compiled"))
    server.start("smollm2-135m", layers=[20], options=["--no-enforce-eager"])
    yield connect(server, "smollm2-135m")
    server.stop()
