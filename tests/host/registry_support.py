"""A real registry on loopback, a token server for it, and one that misbehaves on demand."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import jwt
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from insula.clock import now

SERVICE, ISSUER = "test-registry", "test-issuer"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def serving(app: web.Application, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """`127.0.0.1:port` of an application that runs meanwhile."""
    runner = web.AppRunner(app, shutdown_timeout=0.5)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def real_registry(folder: Path, auth: dict[str, Any] | None = None) -> AsyncIterator[str]:
    """Debian's docker-registry. Yields `127.0.0.1:port`."""
    folder.mkdir(parents=True, exist_ok=True)
    domain = f"127.0.0.1:{free_port()}"
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "storage")}},
        "http": {"addr": domain},
    }
    if auth:
        config["auth"] = auth
    (folder / "config.yml").write_text(json.dumps(config))
    log = (folder / "log").open("wb")
    child = await asyncio.to_thread(
        subprocess.Popen, ["docker-registry", "serve", str(folder / "config.yml")], stdout=log, stderr=log
    )
    log.close()
    try:
        await _answers(domain, folder / "log")
        yield domain
    finally:
        child.kill()
        await asyncio.to_thread(child.wait)


async def _answers(domain: str, log: Path) -> None:
    async with aiohttp.ClientSession() as session:
        for _ in range(200):
            try:
                async with session.get(f"http://{domain}/v2/"):
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)
    raise AssertionError(f"docker-registry does not answer: {log.read_text()}")


class TokenServer:
    """Gives tokens that docker-registry accepts, to `alice` with her password; others get pull only."""

    def __init__(self, folder: Path) -> None:
        self.password = secrets.token_hex(8)
        self.refresh_token = secrets.token_hex(8)
        self.asked: list[str] = []
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, ISSUER)])
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(1)
            .not_valid_before(now() - timedelta(days=1))
            .not_valid_after(now() + timedelta(days=1))
            .sign(self._key, hashes.SHA256())
        )
        folder.mkdir(parents=True, exist_ok=True)
        self.bundle = folder / "token.crt"
        self.bundle.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/token", self._get)
        app.router.add_post("/token", self._post)
        return app

    async def _get(self, request: web.Request) -> web.Response:
        given = request.headers.get("Authorization", "")
        expected = "Basic " + base64.b64encode(f"alice:{self.password}".encode()).decode()
        if given and given != expected:
            return web.json_response({"details": "wrong"}, status=401)
        offline = given and request.query.get("offline_token") == "true"
        return self._answer(request.query.getall("scope", []), trusted=bool(given), offline=bool(offline))

    async def _post(self, request: web.Request) -> web.Response:
        form = await request.post()
        if form.get("refresh_token") != self.refresh_token:
            return web.json_response({"details": "wrong"}, status=401)
        return self._answer(str(form["scope"]).split(), trusted=True)

    def _answer(self, scopes: list[str], *, trusted: bool, offline: bool = False) -> web.Response:
        self.asked += scopes
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            granted = [
                each for each in actions.split(",") if trusted or (each == "pull" and not name.startswith("private/"))
            ]
            access.append({"type": kind, "name": name, "actions": granted})
        moment = int(time.time())
        claims = {
            "iss": ISSUER, "sub": "alice", "aud": SERVICE, "exp": moment + 300, "nbf": moment - 10, "iat": moment,
            "jti": secrets.token_hex(4), "access": access,
        }  # fmt: skip
        der = self._certificate.public_bytes(serialization.Encoding.DER)
        token = jwt.encode(claims, self._key, algorithm="ES256", headers={"x5c": [base64.b64encode(der).decode()]})
        more = {"refresh_token": self.refresh_token} if offline else {}
        return web.json_response({"token": token, "expires_in": 300, **more})


class Scripted:
    """A registry whose answers a test writes down, and which remembers what it was asked."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.break_after: dict[str, list[int]] = {}
        self.status: dict[str, int] = {}
        self.basic = ""
        self.ranges = True
        self.redirect = ""
        self.promise = ""

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    def add_blob(self, data: bytes) -> str:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return digest

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path, dict(request.headers)))
        if self.basic and request.headers.get("Authorization") != self.basic:
            return web.json_response({}, status=401, headers={"WWW-Authenticate": 'Basic realm="here"'})
        *_, kind, name = request.path.split("/")
        if name in self.status:
            body = {"errors": [{"code": "TOOMANYREQUESTS", "message": "slow down"}]}
            return web.json_response(body, status=self.status[name], headers={"Retry-After": "7"})
        if kind == "manifests" and name in self.manifests:
            media_type, data = self.manifests[name]
            headers = {"Docker-Content-Digest": self.promise} if self.promise else {}
            return web.Response(body=data, content_type=media_type, headers=headers)
        if kind == "blobs" and name in self.blobs:
            if self.redirect:
                return web.Response(status=307, headers={"Location": f"{self.redirect}/v2/x/blobs/{name}?sig=a%2Fb%3D"})
            return await self._blob(request, name)
        if request.path == "/v2/":
            return web.json_response({})
        if request.path.endswith("/tags/list"):
            return self._tags(request)
        body = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
        return web.json_response(body, status=404)

    def _tags(self, request: web.Request) -> web.Response:
        """Two at a time, the way to the next ones in a header."""
        names = [name for name in self.manifests if ":" not in name]
        start = int(request.query.get("last", "0"))
        headers = {"Link": f'<{request.path}?last={start + 2}>; rel="next"'} if len(names) > start + 2 else {}
        return web.json_response({"name": "x", "tags": names[start : start + 2]}, headers=headers)

    async def _blob(self, request: web.Request, digest: str) -> web.StreamResponse:
        data, start = self.blobs[digest], 0
        if self.ranges and (asked := request.headers.get("Range")):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        answer = web.StreamResponse(status=206 if start else 200)
        answer.content_length = len(data) - start
        if start:
            answer.headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        await answer.prepare(request)
        breaks = self.break_after.get(digest)
        if breaks:
            await answer.write(data[start : start + breaks.pop(0)])
            assert request.transport is not None
            request.transport.close()
            return answer
        await answer.write(data[start:])
        return answer
