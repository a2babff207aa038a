"""An agent by the official MCP SDK: sees the tools, asks a price, buys, asks again, and is refused beyond what is allowed.

    python agent.py stdio URL DEAR COMMAND [ARGUMENT ...]
    python agent.py http URL DEAR ENDPOINT SECRET_FILE

URL is what is bought, DEAR what the policy forbids. Prints what came of it as one line of JSON.
"""

import asyncio
import json
import os
import sys
from pathlib import Path

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client


async def trade(client, url, dear):
    """What the tools say, in the order in which an agent would ask them."""

    async def call(tool, **arguments):
        result = await client.call_tool(tool, arguments)
        return {"failed": bool(result.is_error), **result.structured_content}

    tools = (await client.list_tools()).tools
    return {
        "protocol": client.protocol_version,
        "tools": {tool.name: tool.annotations.read_only_hint for tool in tools},
        "quote": await call("farebox_quote", url=url),
        "too_dear_for_the_agent": await call("farebox_fetch", url=url, max_sats=0),
        # Before anything is bought there: what the policy forbids is paying.
        "forbidden": await call("farebox_fetch", url=dear),
        "confirmed": await call("farebox_fetch", url=dear, confirmed=True),
        "fetched": await call("farebox_fetch", url=url),
        "again": await call("farebox_fetch", url=url),
        "budget": await call("farebox_budget"),
        "receipts": await call("farebox_receipts", filter={"state": "settled"}),
    }


async def main():
    how, url, dear, *rest = sys.argv[1:]
    if how == "stdio":
        server = StdioServerParameters(command=rest[0], args=rest[1:], env=dict(os.environ))
        async with Client(server) as client:
            return await trade(client, url, dear)
    endpoint, secret = rest
    headers = {"Authorization": f"Bearer {Path(secret).read_text().strip()}"}
    async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
        async with Client(streamable_http_client(endpoint, http_client=http)) as client:
            return await trade(client, url, dear)


print(json.dumps(asyncio.run(main())))
