"""Serves the folder of this file to this machine's browsers: python serve.py [PORT]

Any other static server does, too. This one sends the headers that let the page use several threads.
"""

import functools
import http.server
import sys
from pathlib import Path

HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cache-Control": "no-cache",
}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of the folder, with `HEADERS`."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript",  # on Windows the registry may say otherwise
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self):
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *_):
        """Says nothing of each file."""


class Server(http.server.ThreadingHTTPServer):
    """Says nothing of a page that was closed, or cancelled, while it was loaded."""

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def main() -> None:
    """Serves until Ctrl-C."""
    port = sys.argv[1] if len(sys.argv) > 1 else "8000"
    if len(sys.argv) > 2 or not port.isdecimal() or not int(port) < 65536:
        sys.exit("usage: python serve.py [PORT], a number below 65536")
    handler = functools.partial(Handler, directory=str(Path(__file__).resolve().parent))
    try:
        server = Server(("127.0.0.1", int(port)), handler)
    except OSError as error:
        sys.exit(f"port {port} cannot be used ({error.strerror}): give another one, as in `python serve.py 8001`")
    print(f"http://localhost:{server.server_address[1]}/ (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    main()
