"""A running Ollama, played by a small server that answers as its API is documented."""

import hashlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hasten.errors import ConfigError, RunError
from hasten.export.ollama.create import Created, create, require_name
from hasten.export.ollama.modelfile import Modelfile, modelfile
from hasten.export.ollama.server import Server

WEIGHTS = b"GGUF" + bytes(range(256)) * 40
DIGEST = f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}"
TEMPLATE = '{{ range .Messages }}{{ .Content }}"quoted"\n{{ end }}'
STOPS = ["<|im_end|>", 'a"b\\c']


class Ollama(ThreadingHTTPServer):
    """What it was asked, what it holds, and what it answers with in place of the usual."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.blobs, self.models, self.instead = [], {}, {}, {}
        self.host = f"127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answered(200, {"version": "0.12.3"})

    def do_HEAD(self):
        known = self.path.removeprefix("/api/blobs/") in self.server.blobs
        self.answered(200 if known else 404, None)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/api/blobs/"):
            digest = self.path.removeprefix("/api/blobs/")
            right = digest == f"sha256:{hashlib.sha256(body).hexdigest()}"
            self.server.blobs[digest] = body
            self.answered(201 if right else 400, None if right else {"error": "digest mismatch"})
            return
        request = json.loads(body)
        self.server.asked.append((self.path, request))
        if self.path == "/api/create":
            self.server.models[request["model"]] = request
            self.answered(200, {"status": "parsing GGUF"}, {"status": "writing manifest"}, {"status": "success"})
        elif self.path == "/api/show":
            held = self.server.models[request["model"]]
            lines = [f"{'stop':30} {json.dumps(stop)}" for stop in held.get("parameters", {}).get("stop", [])]
            shown = {"parameters": "\n".join(["temperature 0.7", *lines])}
            self.answered(200, {**shown, **{name: held[name] for name in ("template", "system") if name in held}})

    def answered(self, status, *lines):
        status, lines = self.server.instead.get((self.command, self.path.split("sha256")[0]), (status, lines))
        if status is None:
            self.close_connection = True
            return
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines if line is not None)
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def ollama():
    server = Ollama()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "m.gguf").write_bytes(WEIGHTS)
    text = modelfile("m.gguf", TEMPLATE, STOPS, "Be brief.", {"temperature": 0.7, "top_k": 40})
    (tmp_path / "Modelfile").write_text(text, encoding="utf-8")
    return tmp_path


def test_a_model_is_created(ollama, folder):
    told = []
    made = create("me/ada:v1", folder, host=ollama.host, progress=lambda *args: told.append(args))
    assert made == Created("me/ada:v1", version="0.12.3")
    assert ollama.blobs == {DIGEST: WEIGHTS}
    assert ollama.asked == [
        (
            "/api/create",
            {
                "model": "me/ada:v1",
                "files": {"m.gguf": DIGEST},
                "stream": True,
                "template": TEMPLATE,
                "system": "Be brief.",
                "parameters": {"temperature": 0.7, "top_k": 40, "stop": STOPS},
            },
        ),
        ("/api/show", {"model": "me/ada:v1"}),
    ]
    size = len(WEIGHTS)
    assert told == [
        ("hashing", size, size),
        ("sending", size, size),
        ("parsing GGUF", 0, 0),
        ("writing manifest", 0, 0),
        ("success", 0, 0),
    ]


def test_a_file_that_is_there_is_not_sent_again(ollama, folder):
    ollama.blobs[DIGEST] = b""
    create("ada", folder, host=ollama.host)
    assert ollama.blobs == {DIGEST: b""}


def test_the_least_is_sent_for_the_least(ollama, folder):
    (folder / "Modelfile").write_text("FROM ./m.gguf\n", encoding="utf-8")
    create("ada", folder, host=ollama.host)
    assert ollama.asked[0][1] == {"model": "ada", "files": {"m.gguf": DIGEST}, "stream": True}


def test_the_address_is_ollamas_own_setting(ollama, folder, monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", ollama.host)
    assert create("ada", folder).version == "0.12.3"


@pytest.mark.parametrize(
    ("place", "instead", "named"),
    [
        (("HEAD", "/api/blobs/"), (500, ()), "500"),
        (("POST", "/api/blobs/"), (400, ({"error": "digest mismatch"},)), "digest mismatch"),
        (("POST", "/api/blobs/"), (None, ()), "the connection broke"),
        (("POST", "/api/create"), (400, ({"error": "invalid model name"},)), "invalid model name"),
        (("POST", "/api/create"), (500, ("no json",)), "it answered 500"),
        (
            ("POST", "/api/create"),
            (200, ({"status": "parsing"}, {"error": "unknown model type"})),
            "unknown model type",
        ),
        (("POST", "/api/create"), (200, ({"status": "parsing GGUF"},)), "its last word was 'parsing GGUF'"),
        (("POST", "/api/create"), (200, ("not json",)), "not json"),
        (("POST", "/api/create"), (None, ()), "the connection broke"),
        (("POST", "/api/show"), (404, ({"error": "model 'ada' not found"},)), "not found"),
        (("POST", "/api/show"), (200, ({"template": "{{ .Prompt }}"},)), "the template of 'ada' is '{{ .Prompt }}'"),
        (("POST", "/api/show"), (200, ({"template": TEMPLATE, "system": "x"},)), "the system of 'ada' is 'x'"),
        (("POST", "/api/show"), (200, ({"template": TEMPLATE, "system": "Be brief."},)), "the list of stops"),
        (("GET", "/api/version"), (200, ("a web page",)), "a web page"),
    ],
)
def test_what_the_server_says_is_wrong_is_said(ollama, folder, place, instead, named):
    ollama.instead[place] = instead
    with pytest.raises(RunError) as caught:
        create("ada", folder, host=ollama.host)
    assert ollama.host in caught.value.subject
    assert named in caught.value.value
    assert "ollama create" in caught.value.remedy


def test_nobody_listens():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_address[1]
    assert Server(f"127.0.0.1:{port}").version() is None
    with pytest.raises(RunError, match="the connection broke"):
        Server(f"127.0.0.1:{port}").require("ada", Modelfile("./m.gguf"))


def test_what_listens_there_speaks_no_http():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"220 mail.example.org ESMTP\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(RunError) as caught:
            Server(f"127.0.0.1:{listener.getsockname()[1]}").version()
        thread.join()
    assert "220 mail" in caught.value.value


@pytest.mark.parametrize(
    ("given", "address"),
    [
        (None, "http://127.0.0.1:11434"),
        ("gpu.local", "http://gpu.local:11434"),
        ("gpu.local:99", "http://gpu.local:99"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        (":8080", "http://127.0.0.1:8080"),
        ("http://gpu.local", "http://gpu.local:80"),
        ("https://gpu.local/", "https://gpu.local:443"),
        ("[::1]:7", "http://[::1]:7"),
        (' "gpu.local" ', "http://gpu.local:11434"),
    ],
)
def test_addresses(given, address, monkeypatch):
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    assert Server(given).address == address


@pytest.mark.parametrize(
    "given", ["ftp://x", "http://x/api", "x:port", "x:99999", "http://[::1", "http://.foo", "a..b", "x" * 64]
)
def test_what_is_no_address(given):
    with pytest.raises(ConfigError) as caught:
        Server(given)
    assert caught.value.subject == "OLLAMA_HOST" and repr(given) in caught.value.value


@pytest.mark.parametrize("name", ["ada", "ada:v1", "me/ada", "me/ada:v1", "host.org:5000/me/ada:v1", "_a.b-c", "A"])
def test_names(name):
    assert require_name(name) == name
