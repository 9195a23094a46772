"""The demo's orders service with an echo: a WebSocket that is opened anywhere says back what it is told (RFC 6455).

    PYTHONPATH=backends/orders python echo.py --port 8000

X-Instance in the 101 says whose tunnel it is. Frames are of less than 126 bytes, each a whole message, as bench.tunnels
sends them.
"""

from __future__ import annotations

import base64
import hashlib

import app  # type: ignore[import-not-found, unused-ignore]  # of the demo, wherever that is

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CLOSE = 8


class Echo(app.Orders):  # type: ignore[misc, unused-ignore]
    def do_GET(self) -> None:
        if self.headers.get("Upgrade") == "websocket":
            self.echo()  # not counted as in flight: it would hold up the end
        else:
            self.answer()

    def echo(self) -> None:
        key = hashlib.sha1((self.headers["Sec-WebSocket-Key"] + GUID).encode())
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(key.digest()).decode())
        self.send_header("X-Instance", app.INSTANCE)
        self.end_headers()
        self.wfile.flush()
        self.close_connection = True
        while head := self.rfile.read(2):
            mask, masked = self.rfile.read(4), self.rfile.read(head[1] & 0x7F)
            said = bytes(byte ^ mask[at % 4] for at, byte in enumerate(masked))
            self.wfile.write(bytes([head[0], len(said)]) + said)
            self.wfile.flush()
            if head[0] & 0x0F == CLOSE:
                return


if __name__ == "__main__":
    app.Orders = Echo  # which its server looks up when it is made
    app.main()
