"""httpx to this machine. Each of its one-off calls would load the certificates of the world, 40 ms, for plain HTTP."""

from __future__ import annotations

import ssl
from functools import partial

import httpx

_TRUSTS_NOBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

Client = partial(httpx.Client, verify=_TRUSTS_NOBODY, trust_env=False)
# A new connection for each request, also in several threads. Said in the request and not by a limit of the pool: httpcore
# closes a connection above its limit even when it gave it to another thread a moment ago, whose request fails with EBADF.
ClosingClient = partial(Client, headers={"Connection": "close"})
request = partial(httpx.request, verify=_TRUSTS_NOBODY, trust_env=False)
get = partial(httpx.get, verify=_TRUSTS_NOBODY, trust_env=False)
post = partial(httpx.post, verify=_TRUSTS_NOBODY, trust_env=False)
put = partial(httpx.put, verify=_TRUSTS_NOBODY, trust_env=False)
