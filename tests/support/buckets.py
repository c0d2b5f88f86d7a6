"""A bucket on loopback: moto's S3 server, and what lies in it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

KEYS = {"AWS_ACCESS_KEY_ID": "AKIADRAWN0000000", "AWS_SECRET_ACCESS_KEY": "drawn/secret+of1the2test3bucket4"}


@contextmanager
def moto_server() -> Iterator[str]:
    """moto's S3 server in this process; gives its address."""
    pytest.importorskip("obstore", reason="obstore is not installed")
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    before = {name: os.environ.get(name) for name in KEYS}
    os.environ.update(KEYS)
    try:
        running.start()
        host, port = running.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        running.stop()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


SIGNED = f"AWS4-HMAC-SHA256 Credential={KEYS['AWS_ACCESS_KEY_ID']}/20260101/us-east-1/s3/aws4_request, Signature=0"


@contextmanager
def gcs_server() -> Iterator[str]:
    """A server of the XML protocol of Google's store, which is that of S3 but for how one signs in: moto's.

    No emulator of that store on a registry lists by XML, which is how obstore lists. A bucket's name has letters and
    digits only: moto does not decode it.
    """
    pytest.importorskip("obstore", reason="obstore is not installed")
    moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    from werkzeug.serving import make_server

    app = moto.DomainDispatcherApplication(moto.create_backend_app)

    def signed(environ: dict[str, Any], start: Any) -> Any:
        environ["HTTP_AUTHORIZATION"] = SIGNED  # for `Bearer …`, which says nothing to moto
        return app(environ, start)

    server = make_server("127.0.0.1", 0, signed, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()


def aim_gcs(monkeypatch: pytest.MonkeyPatch, endpoint: str, folder: Path) -> None:
    """Let Google's store be at `endpoint`, as the file of a service account says it."""
    for name, value in KEYS.items():  # of whoever fills the bucket
        monkeypatch.setenv(name, value)
    account = folder / "account.json"
    keys = {"client_email": "", "private_key": "", "private_key_id": ""}
    account.write_text(json.dumps({"gcs_base_url": endpoint, "disable_oauth": True, **keys}))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(account))
    monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
    from lavis_ext.fetch import objects

    objects._store.cache_clear()


def aim(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Let S3 be at `endpoint`, with the keys of the drawn user, as a user's environment says it."""
    for name, value in {
        **KEYS,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    from lavis_ext.fetch import objects

    objects._store.cache_clear()


def fill_bucket(endpoint: str, bucket: str, files: Mapping[str, bytes]) -> None:
    """Make a bucket of these objects by boto3, as others write them."""
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket=bucket)
    for name, data in files.items():
        client.put_object(Bucket=bucket, Key=name, Body=data)


def files_of(folder: Path, prefix: str) -> dict[str, bytes]:
    """Every file below a folder, by the key that it gets."""
    return {f"{prefix}{path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}
