"""A gateway as one writes it in an afternoon, with Flask and requests: python flask_gateway.py PORT BACKEND_PORT

Werkzeug's development server, a new connection for every request on both sides, bodies held in memory.
"""

from __future__ import annotations

import logging
import sys

import requests
from flask import Flask, Response, request

NOT_PASSED_ON = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "host"})
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def gateway(backend: str) -> Flask:
    """The application."""
    app = Flask(__name__)

    @app.route("/api/payment", defaults={"rest": ""}, methods=METHODS)
    @app.route("/api/payment/<path:rest>", methods=METHODS)
    def forward(rest: str) -> Response:
        answer = requests.request(
            request.method,
            backend + request.full_path,
            headers={name: value for name, value in request.headers if name.lower() not in NOT_PASSED_ON},
            data=request.get_data(),
            allow_redirects=False,
            timeout=30,
        )
        headers = [(name, value) for name, value in answer.headers.items() if name.lower() not in NOT_PASSED_ON]
        return Response(answer.content, answer.status_code, headers)

    return app


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    gateway(f"http://127.0.0.1:{sys.argv[2]}").run("127.0.0.1", int(sys.argv[1]), threaded=True)
