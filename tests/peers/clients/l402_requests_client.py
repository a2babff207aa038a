"""Buys with l402-requests, and asks again.

    python l402_requests_client.py sync|async|own-wallet URL

Where the wallet's lnd is stands in the environment: LND_REST (its address), LND_CERTIFICATE and LND_MACAROON (files).
Prints what came of it as one line of JSON.
"""

import asyncio
import json
import os
import ssl
import sys
from pathlib import Path

import httpx
from l402_requests import AsyncL402Client, L402Client, LndWallet, PaymentFailedError, WalletBase

ADDRESS = os.environ["LND_REST"]
CERTIFICATE = os.environ["LND_CERTIFICATE"]
MACAROON = Path(os.environ["LND_MACAROON"]).read_bytes().hex()

# How long a payment may take, in seconds, and what it may cost besides its amount, in satoshi.
TIMEOUT = 60
FEE_MAX = 10


class HexWallet(WalletBase):
    """Pays with an lnd over REST, and hands the preimage on as lnd writes it: in hexadecimal digits."""

    async def pay_invoice(self, bolt11: str) -> str:
        payment = {"payment_request": bolt11, "timeout_seconds": TIMEOUT, "fee_limit_sat": FEE_MAX}
        trust = ssl.create_default_context(cafile=CERTIFICATE)
        headers = {"Grpc-Metadata-macaroon": MACAROON}
        async with httpx.AsyncClient(base_url=ADDRESS, headers=headers, verify=trust, timeout=TIMEOUT) as lnd:
            answer = await lnd.post("/v2/router/send", json=payment)
        # One object a line; the last one tells how it ended.
        update = json.loads(answer.text.strip().splitlines()[-1])
        result = update.get("result", {})
        if result.get("status") != "SUCCEEDED":
            raise PaymentFailedError(f"the payment ended so: {update}", bolt11)
        return result["payment_preimage"]


def told(client, answers):
    """What the client says that it did, and what it was answered."""
    payments = client.spending_log.records
    return {
        "answers": [{"status": answer.status_code, "body": answer.text} for answer in answers],
        "paid_sat": [payment.amount_sats for payment in payments],
        "preimages": [payment.preimage for payment in payments],
    }


async def ask_twice(url):
    async with AsyncL402Client(wallet=HexWallet()) as client:
        return told(client, [await client.get(url), await client.get(url)])


def main(how, url):
    if how == "async":
        return asyncio.run(ask_twice(url))
    # Its own takes lnd's hexadecimal digits for base64, and hands on what that makes of them.
    wallet = LndWallet(ADDRESS, MACAROON, CERTIFICATE) if how == "own-wallet" else HexWallet()
    client = L402Client(wallet=wallet)
    return told(client, [client.get(url), client.get(url)])


print(json.dumps(main(*sys.argv[1:])))
