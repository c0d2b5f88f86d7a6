"""A bucket on loopback: moto's S3 server, and what lies in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

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
