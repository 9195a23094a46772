"""A reverse proxy as one writes it with aiohttp and uvloop: python aiohttp_proxy.py PORT BACKEND_PORT"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import uvloop
from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web

HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect", "host"}
)


def proxy(backend: str) -> web.Application:
    """The application; both bodies stream."""

    async def forward(request: web.Request) -> web.StreamResponse:
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP]
        headers.append(("Host", request.host))
        headers.append(("X-Forwarded-For", request.remote or ""))
        async with request.app["session"].request(
            request.method,
            backend + request.raw_path,
            headers=headers,
            data=request.content if request.body_exists else None,
            allow_redirects=False,
        ) as answer:
            response = web.StreamResponse(status=answer.status, reason=answer.reason)
            for name, value in answer.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    response.headers.add(name, value)
            length = answer.content_length
            if length is not None and length <= 65_536:
                small = web.Response(status=answer.status, reason=answer.reason, body=await answer.read())
                small.headers.extend((name, value) for name, value in response.headers.items() if name != "Content-Type")
                if "Content-Type" in response.headers:
                    small.headers["Content-Type"] = response.headers["Content-Type"]
                return small
            await response.prepare(request)
            async for block in answer.content.iter_any():
                await response.write(block)
            await response.write_eof()
            return response

    async def session(app: web.Application) -> AsyncIterator[None]:
        async with ClientSession(
            connector=TCPConnector(limit=0),
            timeout=ClientTimeout(total=None, sock_connect=2, sock_read=30),
            cookie_jar=DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        ) as app["session"]:
            yield

    app = web.Application(client_max_size=2**31)
    app.router.add_route("*", "/api/payment{rest:.*}", forward)
    app.cleanup_ctx.append(session)
    return app


if __name__ == "__main__":
    uvloop.install()
    web.run_app(
        proxy(f"http://127.0.0.1:{sys.argv[2]}"),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        access_log=None,
        backlog=4096,
        print=None,
    )
