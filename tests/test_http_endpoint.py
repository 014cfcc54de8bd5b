"""HTTP endpoints: the protocol, and servers that fail, stall and lie. All are on 127.0.0.1."""

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import toys
from dreamstill.black_box.black_box import BlackBox
from dreamstill.black_box.config import BlackBoxConfig
from dreamstill.black_box.endpoints import HttpEndpoint
from dreamstill.errors import BudgetError, ConfigError, TeacherError
from dreamstill.loaders.config import TeacherFile
from dreamstill.loaders.teacher_file import open_from

EXAMINATION = 3


class Handler(BaseHTTPRequestHandler):
    """Answers with logits of Quadrants as JSON, or does what the server's next fault says."""

    server: "Server"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        images = np.load(io.BytesIO(body), allow_pickle=False)
        self.server.requests.append((images, dict(self.headers)))
        fault = self.server.faults.pop(0) if self.server.faults else None
        if fault is not None:
            fault(self)
            return
        with torch.no_grad():
            logits = toys.quadrants()(torch.from_numpy(images))
        self.answer(json.dumps(logits.tolist()).encode())

    def answer(self, body: bytes, status: int = 200, headers: Any = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A server that notes its requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[np.ndarray[Any, Any], dict[str, str]]] = []
        self.faults: list[Callable[[Handler], None] | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/classify"

    @property
    def num_images(self) -> int:
        return sum(len(images) for images, _ in self.requests)


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server:
        yield server


def opened(server: Server, **settings: Any) -> BlackBox:
    config = BlackBoxConfig(**{"wait": 0.01, "timeout": 1.0, **settings})
    return BlackBox(server.url, toys.SPEC, config)


def inputs(num: int) -> torch.Tensor:
    return toys.SPEC.encode(toys.SPEC.noise(num))


def npy(values: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(values))
    return file.getvalue()


def stall(handler: Handler) -> None:
    time.sleep(1.5)


def slow(handler: Handler) -> None:
    time.sleep(0.1)
    handler.answer(json.dumps((2 * np.eye(4)[[0, 1]]).tolist()).encode())


def cut_off(handler: Handler) -> None:
    handler.answer(b"[[0, 0", headers={"Content-Length": "1000"})
    handler.close_connection = True


def hang_up(handler: Handler) -> None:
    handler.connection.close()


def status(code: int) -> Callable[[Handler], None]:
    return lambda handler: handler.answer(b"out of order", code)


def says(body: bytes) -> Callable[[Handler], None]:
    return lambda handler: handler.answer(body)


def test_images_go_as_an_npy_file_and_answers_come_as_json_or_npy(server: Server) -> None:
    wanted = toys.quadrants()(inputs(5)).detach()
    assert torch.allclose(opened(server)(inputs(5)), wanted, atol=1e-4)
    images, headers = server.requests[-1]
    assert images.dtype == np.float32
    assert np.allclose(images, inputs(5))
    assert headers["Content-Type"] == "application/x-npy"
    endpoint = HttpEndpoint(server.url, headers={"Authorization": "Bearer token"})
    server.faults = [says(npy(np.eye(4)))]
    assert np.array_equal(endpoint(np.zeros((4, 1, 8, 8), np.uint8)), np.eye(4))
    assert server.requests[-1][1]["Authorization"] == "Bearer token"


@pytest.mark.parametrize("fault", [stall, cut_off, hang_up, status(500), status(503), status(429)])
def test_a_failure_that_may_pass_is_tried_again_and_counted(server: Server, fault: Any) -> None:
    teacher = opened(server)
    server.faults = [fault, None]
    wanted = toys.quadrants()(inputs(6)).detach()
    assert torch.allclose(teacher(inputs(6)), wanted, atol=1e-4)
    assert teacher.queries == server.num_images == EXAMINATION + 12


def test_a_slow_server_is_waited_for(server: Server) -> None:
    teacher = opened(server)
    server.faults = [slow]
    assert teacher(inputs(2)).tolist() == (2 * np.eye(4)[[0, 1]]).tolist()
    assert len(server.requests) == 3


def test_retries_never_exceed_the_budget(server: Server) -> None:
    teacher = opened(server, budget=30)
    server.faults = [status(500)] * 9
    with pytest.raises(BudgetError, match="27 of 30 are spent"):
        teacher(inputs(8))
    assert server.num_images == 27


@pytest.mark.parametrize("code", [400, 401, 404, 302])
def test_a_refusal_is_not_repeated(server: Server, code: int) -> None:
    server.faults = [
        lambda handler: handler.answer(b"no such model", code, {"Location": "http://127.0.0.1:9/"})
    ]
    with pytest.raises(TeacherError, match=f"refused a request with HTTP {code} .*no such model"):
        opened(server)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html><body>Sign in</body></html>", "JSON list or an .npy file; got b'<html>"),
        (b"", "got b''"),
        (b"[[1, 2", "got b"),
        (b"\x93NUMPY\x01\x00v\x00{'descr'", "got b"),
        (npy(np.zeros((2, 5)))[:-8], "got b"),
        (b"[[0, 1, 2, 3]]", r"must answer with \(2, K\) logits; got shape \(1, 4\)"),
        (b"[[0, NaN, 2, 3], [0, 1, 2, 3]]", "not finite"),
        (b'{"error": "busy"}', "must answer with .* got {'error': 'busy'}"),
        (b"[[0, 1, 2, 3], [0, 1, 2]]", "got .*0, 1, 2, 3"),
        (b"[" * 10**6, "got b"),
    ],
)
def test_an_endpoint_that_lies_gets_one_line(server: Server, body: bytes, message: str) -> None:
    server.faults = [says(body)]
    with pytest.raises(TeacherError, match=message) as caught:
        opened(server)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)
    assert len(server.requests) == 1


def test_nobody_there_is_said_after_the_retries() -> None:
    with Server() as server:
        url = server.url  # nothing listens once it is closed
    config = BlackBoxConfig(wait=0.01, retries=2)
    with pytest.raises(TeacherError, match=r"failed 3 times, the last with: .*refused"):
        BlackBox(HttpEndpoint(url), toys.SPEC, config)


@pytest.mark.parametrize("url", ["ftp://host/x", "file:///etc/passwd", "http://", "host:80"])
def test_an_endpoint_is_an_address(url: str) -> None:
    with pytest.raises(ConfigError, match="http:// or https://"):
        HttpEndpoint(url)


def test_an_address_opens_by_name_and_a_second_time_asks_nothing(
    server: Server, tmp_path: Path
) -> None:
    cache = BlackBoxConfig(cache=str(tmp_path / "answers.sqlite"))
    settings: dict[str, Any] = {"shape": (1, 8, 8), "mean": (0.5,), "std": (0.25,)}
    file = TeacherFile(weights=server.url, black_box=cache, **settings)
    open_from(file)(inputs(9))
    assert server.num_images == EXAMINATION + 9
    again = open_from(file)
    assert torch.allclose(again(inputs(9)), toys.quadrants()(inputs(9)).detach(), atol=1e-4)
    assert server.num_images == again.queries == EXAMINATION + 9
