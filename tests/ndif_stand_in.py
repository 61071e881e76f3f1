"""A small HTTP server that answers as NDIF would on a bad day; for faults that cannot be had here."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

import zstandard


def unpacked(payload):
    """A request as the server unpacks it."""
    return zstandard.ZstdDecompressor().decompress(payload)


class StandIn:
    """Answers by path; `on(path, *answers)` gives them in turn, the last one for ever."""

    def __init__(self, key):
        self.key = key
        self.asked = []
        self._answers = {}
        self.on("/connected", (200, {"status": "connected"}))
        packages = {p: version(p) for p in ("nnsight", "torch", "transformers")}
        self.on("/env", (200, {"python_version": "3.12.1 (main)", "packages": packages}))
        state = {"application_state": "RUNNING", "deployment_level": "HOT", "model_key": key}
        self.on("/status", (200, {"deployments": {"1": state}}))
        self.on("/request", (422, {"detail": [{"loc": ["body", "blob"], "type": "missing"}]}))

    def on(self, path, *answers):
        self._answers[path] = list(answers)

    def answer(self, path):
        self.asked.append(path)
        answers = self._answers.get(path.split("?")[0], [(404, {"detail": "Not Found"})])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def serving(self):
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status, body = stand_in.answer(self.path)
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                self.do_GET()

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
