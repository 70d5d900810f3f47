"""A server of a folder's files over HTTP on this machine, for tests of remote data."""

import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Ranges(BaseHTTPRequestHandler):
    """Serves a folder, with ranges of bytes if `ranges` is True."""

    def __init__(self, root, ranges, *args):
        self.root, self.ranges = root, ranges
        super().__init__(*args)

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        file = self.root / self.path.lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return
        status, first, length = 200, 0, file.stat().st_size
        if self.ranges and (wanted := self.headers.get("Range")):
            first, last = (int(part or length - 1) for part in wanted.removeprefix("bytes=").split("-"))
            status, length = 206, min(last + 1, length) - first
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f"{file.stat().st_size} {file.stat().st_mtime_ns}")
        self.end_headers()
        if body:
            with open(file, "rb") as stream:
                stream.seek(first)
                self.wfile.write(stream.read(length))

    def log_message(self, *args):
        pass


class Server:
    """Serves a folder until it is stopped; `url` is the folder's."""

    def __init__(self, root, ranges=True, port=0):
        self.server = ThreadingHTTPServer(("127.0.0.1", port), partial(Ranges, root, ranges))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
