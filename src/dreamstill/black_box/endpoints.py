"""Ask an HTTP endpoint, or a file in onnxruntime."""

import http.client
import io
import json
import socket
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreamstill.errors import ConfigError, TeacherError, quoted
from dreamstill.exporters.formats import onnxruntime
from dreamstill.files.checkpoints import digest
from dreamstill.files.reading import StrPath, reading

__all__ = ["HttpEndpoint", "OnnxFile"]

MOST_BYTES = 2**28
"""Most bytes of an answer that are read."""
NPY = b"\x93NUMPY"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Go nowhere but to the URL that the user named."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class HttpEndpoint:
    """An endpoint that is sent images as an .npy file and answers with JSON or with an .npy file.

    The request is a POST of an array (N, C, H, W), float32 or uint8. The answer has status 200 and
    is scores (N, K) or labels (N,): a JSON list, or an .npy file.

    Args:
        url: http:// or https://; no other address is asked, whatever it answers.
        timeout: seconds to wait.
        headers: more headers, such as Authorization.

    """

    def __init__(
        self, url: str, *, timeout: float = 30.0, headers: Mapping[str, str] | None = None
    ) -> None:
        if not url.startswith(("http://", "https://")) or not url.partition("://")[2]:
            raise ConfigError(f"an endpoint is an address of http:// or https://; got {url!r}")
        self.url, self.timeout = url, timeout
        self.headers = {
            "Content-Type": "application/x-npy",
            "Accept": "application/json, application/x-npy",
            **(headers or {}),
        }
        self._opener = urllib.request.build_opener(_NoRedirect)

    def __call__(self, images: NDArray[Any]) -> Any:
        """Return what the endpoint answers.

        Raises:
            ConnectionError, TimeoutError: the request failed and may succeed another time.
            TeacherError: it was refused, or the answer is neither JSON nor an .npy file.

        """
        body = io.BytesIO()
        np.lib.format.write_array(body, images, allow_pickle=False)
        request = urllib.request.Request(self.url, body.getvalue(), self.headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                return self._read(response)
        except urllib.error.HTTPError as error:
            if error.code >= 500 or error.code == http.client.TOO_MANY_REQUESTS:
                error.close()
                raise ConnectionError(f"HTTP {error.code} {error.reason}") from error
            said = ""
            with error, suppress(OSError):
                said = error.read(200).decode(errors="replace")
            raise TeacherError(
                f"{self.url} refused a request with HTTP {error.code} {error.reason}: {said}"
            ) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, socket.gaierror):
                raise TeacherError(f"{self.url} is not found: {error.reason.strerror}") from error
            raise ConnectionError(str(error.reason)) from error
        except http.client.HTTPException as error:  # cut off, or not HTTP
            raise ConnectionError(repr(error)) from error

    def _read(self, response: http.client.HTTPResponse) -> Any:
        data = response.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise TeacherError(f"{self.url} answers with more than {MOST_BYTES:,} bytes")
        if response.length:
            raise ConnectionError(f"its answer ended {response.length:,} bytes early")
        try:
            if data.startswith(NPY):
                return np.load(io.BytesIO(data), allow_pickle=False)
            return json.loads(data)
        except (ValueError, EOFError, RecursionError) as error:
            raise TeacherError(
                f"{self.url} must answer with a JSON list or an .npy file; got {quoted(data)}"
            ) from error


class OnnxFile:
    """A network of one input and one output in an ONNX file, run by onnxruntime.

    Args:
        path: the file.

    Raises:
        TeacherError: the file does not open, or has several inputs.

    """

    def __init__(self, path: StrPath) -> None:
        options = onnxruntime().SessionOptions()
        options.log_severity_level = 3
        with reading(path, TeacherError, "does not open in onnxruntime", what="network"):
            with open(path, "rb") as file:  # noqa: PTH123
                self.digest = digest(file.read())
            self.session = onnxruntime().InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            raise TeacherError(f"{path} must have one input; it has {[i.name for i in inputs]}")
        self.input = inputs[0]
        self.output = self.session.get_outputs()[0].name

    def __call__(self, images: NDArray[Any]) -> NDArray[Any]:
        """Return the first output for images (N, C, H, W), in batches of the file's own size."""
        size = self.input.shape[0]
        if not isinstance(size, int):
            return self._run(images)
        padded = np.concatenate([images, np.repeat(images[-1:], -len(images) % size, 0)])
        parts = [self._run(padded[at : at + size]) for at in range(0, len(padded), size)]
        return np.concatenate(parts)[: len(images)]

    def _run(self, images: NDArray[Any]) -> NDArray[Any]:
        answers: NDArray[Any] = self.session.run([self.output], {self.input.name: images})[0]
        return answers
