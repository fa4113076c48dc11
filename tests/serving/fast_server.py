"""A server that answers at once, in a process of its own: `python fast_server.py PORT`.

It obeys constraints; the label of "ticket number N" is the N-th of those allowed, counted around.
"""

from __future__ import annotations

import re
import sys

from aiohttp import web

_NUMBER = re.compile(r"ticket number (\d+)")


async def models(request: web.Request) -> web.Response:
    return web.json_response({"data": [{"id": "fast"}]})


async def completions(request: web.Request) -> web.Response:
    body = await request.json()
    labels = body.get("structured_outputs", {}).get("choice", ["none"])
    numbers = _NUMBER.findall(body["prompt"])
    label = labels[int(numbers[0]) % len(labels)] if numbers else labels[0]
    choice = {"index": 0, "text": label, "logprobs": {"token_logprobs": [-0.25], "top_logprobs": [{"a": -0.25}]}}
    return web.json_response({"choices": [choice]})


if __name__ == "__main__":
    app = web.Application()
    app.add_routes([web.get("/v1/models", models), web.post("/v1/completions", completions)])
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)
