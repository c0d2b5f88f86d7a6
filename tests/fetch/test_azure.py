"""Blobs of Azure: signed reads, refusals in words, listings, and a signature that shows up nowhere."""

from __future__ import annotations

import hashlib
import io
import logging
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavis_ext.common.errors import AccessError, ConfigError, IntegrityError, LavisExtError, NetworkError, UnsafeError
from lavis_ext.fetch import MirrorMap, RemoteFile, Source, Transfer, fetch
from lavis_ext.fetch.azure import (
    TOKENS,
    BlobPlace,
    Sas,
    blob_place,
    child_url,
    clean_token,
    list_blobs,
    md5_of,
    name_below,
    parse_listing,
    parse_time,
    variable_of,
)
from lavis_ext.fetch.safety import redact
from lavis_ext.fetch.transfer import Failure
from tests.support.azure import ACCOUNT, CANARY, Azure, Refusal, listing_page, token, traces
from tests.support.canary import planted
from tests.support.fetching import FAST
from tests.support.server import Fault, Server, payload

URL = f"azure:{ACCOUNT}/oscar/datasets/vqa.zip"
PATH = f"/{ACCOUNT}/oscar/datasets/vqa.zip"
DATA = b"PK\x03\x04" + payload(200_000)
VARIABLE = "LAVIS_EXT_AZURE_SAS_OSCAR"


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Azure]:
    """A service with one blob, its endpoint and its token in the environment."""
    with Azure() as running:
        monkeypatch.setenv(VARIABLE, running.offer("oscar", {"datasets/vqa.zip": DATA}))
        monkeypatch.setenv("LAVIS_EXT_AZURE_ENDPOINT", running.base)
        yield running
    TOKENS.forget()


def get(folder: Path, url: str = URL, size: int | None = len(DATA)) -> Path:
    """Fetch a blob into a folder."""
    return fetch(Transfer(folder / "f.zip", (Source(url),), size), FAST).path


def refused(folder: Path, url: str = URL) -> LavisExtError:
    """Why a blob is not fetched."""
    with pytest.raises(LavisExtError) as caught:
        get(folder, url)
    return caught.value


def test_the_token_arrives_as_it_was_given(azure: Azure, tmp_path: Path) -> None:
    assert get(tmp_path).read_bytes() == DATA
    assert azure.queries == [azure.tokens["oscar"]] and CANARY in azure.queries[0]


@pytest.mark.parametrize("form", ["?{}", "&{}", " {}\n", "https://x.blob.core.windows.net/oscar/a.zip?{}"])
def test_tokens_are_taken_in_every_form_that_people_paste(
    azure: Azure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv(VARIABLE, form.format(azure.tokens["oscar"]))
    assert get(tmp_path).read_bytes() == DATA


def test_a_cut_body_is_continued_under_the_same_etag(azure: Azure, tmp_path: Path) -> None:
    azure.script(PATH, Fault(times=1, cut_at=90_000))
    assert get(tmp_path).read_bytes() == DATA
    assert [seen.range for seen in azure.log] == [None, "bytes=90000-"]
    assert azure.log[1].headers["If-Match"] == azure.objects[PATH].etag


def test_a_blob_that_is_replaced_is_begun_again(azure: Azure, tmp_path: Path) -> None:
    other = b"PK\x03\x04" + payload(200_000, 1)
    azure.script(PATH, Fault(times=1, cut_at=90_000, then=lambda: azure.put(PATH, other)))
    assert get(tmp_path).read_bytes() == other


def test_single_ranges_are_read_and_signed(azure: Azure) -> None:
    with RemoteFile(URL, FAST) as remote:
        assert remote.read_ranges([(10, 20), (150_000, 150_100)]) == [DATA[10:20], DATA[150_000:150_100]]
    assert all(query.endswith(CANARY) for query in azure.queries)


def test_public_containers_need_no_token(azure: Azure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    azure.public.add("oscar")
    assert get(tmp_path).read_bytes() == DATA
    assert azure.queries == [""] and azure.log[0].headers["x-ms-version"]


@pytest.mark.fault("T06")
@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        ("PublicAccessNotPermitted", AccessError, "gives nothing without a SAS"),
        ("NoAuthenticationInformation", AccessError, "no SAS was sent"),
        ("AuthenticationFailed", AccessError, "wrong, expired, or was issued for another container"),
        ("AuthorizationPermissionMismatch", AccessError, "lacks the right"),
        ("BlobNotFound", NetworkError, "a folder is not a blob"),
        ("ContainerNotFound", NetworkError, "no container of this name"),
        ("ServerBusy", NetworkError, "busy"),
    ],
)
@pytest.mark.parametrize("in_header", [True, False])
def test_refusals_in_words(
    azure: Azure, tmp_path: Path, code: str, kind: type[LavisExtError], reason: str, in_header: bool
) -> None:
    azure.refusals[PATH] = Refusal(code, 100, in_header)
    error = refused(tmp_path)
    assert type(error) is kind and code in str(error) and reason in str(error)
    assert (VARIABLE in str(error)) == (kind is AccessError)


def test_a_busy_account_is_asked_again(azure: Azure, tmp_path: Path) -> None:
    azure.refusals[PATH] = Refusal("ServerBusy", 2)
    assert get(tmp_path).read_bytes() == DATA and len(azure.log) == 3


def test_without_a_token_the_error_names_the_variable(
    azure: Azure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE)
    for code in ("PublicAccessNotPermitted", "ResourceNotFound"):
        azure.denial = code
        error = refused(tmp_path)
        assert isinstance(error, AccessError) and VARIABLE in str(error) and code in str(error)


def test_a_token_serves_its_own_container_only(azure: Azure, tmp_path: Path) -> None:
    azure.offer("vinvl", {"a.zip": DATA})
    error = refused(tmp_path, f"azure:{ACCOUNT}/vinvl/a.zip")
    assert isinstance(error, AccessError) and "LAVIS_EXT_AZURE_SAS_VINVL" in str(error)
    assert azure.queries == [""]


@pytest.mark.fault("S06")
@pytest.mark.parametrize(
    ("change", "reason"),
    [({"days": -1}, "expired on"), ({"rights": "l"}, "no right to read")],
)
def test_s06_what_a_token_cannot_do_is_reported_before_a_byte_moves(
    azure: Azure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], reason: str
) -> None:
    monkeypatch.setenv(VARIABLE, token("oscar", **change))  # type: ignore[arg-type]
    error = refused(tmp_path)
    assert error.exit_code == 7 and reason in str(error) and azure.log == [] and CANARY not in str(error)


def test_fields_of_a_token() -> None:
    sas = Sas("sp=rl&st=2023-08-28T10:00:00Z&se=3023-08-28T18:00:00Z&sig=x", "there")
    assert sas.obstacle("r") is None and sas.may_list and "sig" not in repr(sas)
    assert "2023-08-28" in str(sas.obstacle("r", datetime(2023, 1, 1, tzinfo=timezone.utc)))
    assert Sas("sig=x").obstacle("l") is None and not Sas("sig=x").may_list
    assert parse_time("2030-01-31") == datetime(2030, 1, 31, tzinfo=timezone.utc) and parse_time("soon") is None
    assert variable_of("my-box") == "LAVIS_EXT_AZURE_SAS_MY_BOX"


@pytest.mark.parametrize("text", ["", "hello", "sv=1&sp=r", "sv=1&sig=a b", "sv=1&sig=ä"])
def test_what_is_no_token_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        clean_token(text, VARIABLE)
    assert text not in str(caught.value).replace("sv=…&sig=…", "") or not text


def test_tokens_out_of_a_private_file_or_standard_input(
    azure: Azure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE)
    file = tmp_path / "tokens"
    planted(file).write_text(f"vinvl {token('vinvl')}\noscar ?{azure.tokens['oscar']}\n")
    file.chmod(0o644)
    with pytest.raises(AccessError, match="chmod 600"):
        TOKENS.load(str(file))
    file.chmod(0o600)
    TOKENS.load(str(file))
    assert get(tmp_path / "1").read_bytes() == DATA
    TOKENS.forget()
    monkeypatch.setenv("LAVIS_EXT_AZURE_TOKENS", str(file))
    assert get(tmp_path / "2").read_bytes() == DATA
    TOKENS.forget()
    monkeypatch.delenv("LAVIS_EXT_AZURE_TOKENS")
    monkeypatch.setattr("sys.stdin", io.StringIO(azure.tokens["oscar"] + "\n"))
    TOKENS.load("-")
    assert get(tmp_path / "3").read_bytes() == DATA


def test_a_file_of_tokens_that_is_empty_or_missing(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="cannot be read"):
        TOKENS.load(str(tmp_path / "none"))
    (tmp_path / "empty").touch(0o600)
    with pytest.raises(ConfigError, match="holds no SAS"):
        TOKENS.load(str(tmp_path / "empty"))


def test_no_token_over_plain_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, token("oscar"))
    monkeypatch.setenv("LAVIS_EXT_AZURE_ENDPOINT", "http://{account}.blob.example.org")
    assert isinstance(refused(tmp_path), UnsafeError)
    known = Transfer(tmp_path / "known", (Source(URL),), len(DATA), hashlib.sha256(DATA).hexdigest())
    with pytest.raises(UnsafeError):  # bytes with a declared digest may come by plain http, a token never
        fetch(known, FAST)


@pytest.mark.fault("S04")
def test_s04_the_signature_shows_up_nowhere(
    azure: Azure, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    get(tmp_path / "good")
    azure.script(PATH, Fault(cut_at=90_000))
    shown = []
    with pytest.raises(NetworkError) as caught:
        get(tmp_path / "bad")
    shown.append("".join(traceback.format_exception(caught.value)))
    for code in ("AuthenticationFailed", "ServerBusy"):
        azure.refusals[PATH] = Refusal(code, 100)
        shown.append("".join(traceback.format_exception(refused(tmp_path / "bad"))))
    azure.__exit__()
    shown.append("".join(traceback.format_exception(refused(tmp_path / "bad"))))
    text = "".join([caplog.text, *shown, *capfd.readouterr()])
    assert "vqa.zip" in text and "c4n4ry" not in text and "sig=" not in text
    assert (tmp_path / "bad" / "f.zip.part.json").is_file()
    assert traces(CANARY, tmp_path) == []


def test_signatures_are_struck_from_free_text() -> None:
    shown = redact("GET /a/b?sv=1&sig=abc%2B HTTP/1.1; token sv=1&sig=abc%2B&sp=r https://h/x?sig=abc")
    assert "abc" not in shown and "/a/b" in shown and "https://h/x" in shown


@pytest.mark.fault("S07")
def test_a_redirect_does_not_take_the_token_along(azure: Azure, second: Server, tmp_path: Path) -> None:
    azure.script(PATH, Fault(redirect=second.put("/elsewhere.zip", DATA)))
    get(tmp_path)
    assert [seen.path for seen in second.log] == ["/elsewhere.zip"]
    assert not any("sig" in str(seen.headers) for seen in second.log)


def test_a_mirror_needs_neither_azure_nor_a_token(azure: Azure, second: Server, tmp_path: Path) -> None:
    second.put(f"/{ACCOUNT}.blob.core.windows.net/oscar/datasets/vqa.zip", DATA)
    transfer = Transfer(tmp_path / "f.zip", (Source(URL),), len(DATA))
    fetch(MirrorMap(second.base, FAST).apply(transfer), FAST)
    assert azure.queries == [] and not any("sig" in str(seen.headers) for seen in second.log)


def test_addresses() -> None:
    place = blob_place("azure:acc/box/a%20b/c.tsv")
    assert place == BlobPlace("acc", "box", "a b/c.tsv")
    assert place.url() == "https://acc.blob.core.windows.net/box/a%20b/c.tsv"
    assert child_url("azure:acc/box/f/", "ä b?.tsv") == "azure:acc/box/f/%C3%A4%20b%3F.tsv"
    assert name_below("azure:acc/box/f", "azure:acc/box/f/%C3%A4%20b%3F.tsv") == "ä b?.tsv"
    assert name_below("azure:acc/box/f", "azure:acc/box/g") == ""


def test_other_clouds_by_their_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVIS_EXT_AZURE_ENDPOINT", "https://{account}.blob.core.chinacloudapi.cn/")
    assert blob_place("azure:acc/box/x").url() == "https://acc.blob.core.chinacloudapi.cn/box/x"


@pytest.mark.parametrize("url", ["azure:acc", "azure:acc/box", "azure:/box/x", "azure:a.b/box/x"])
def test_incomplete_addresses_are_reported(url: str) -> None:
    with pytest.raises(Failure, match="ACCOUNT/CONTAINER/BLOB"):
        blob_place(url)


def test_dead_accounts_stay_denied(tmp_path: Path) -> None:
    assert isinstance(refused(tmp_path, "azure:msvocds/coco2015/x.zip"), UnsafeError)


def test_a_listing_is_followed_page_by_page(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = {f"d/{name}": name.encode() for name in ("a&b.tsv", "c d/é.tsv", "z.json", "folder/x")}
    monkeypatch.setenv(VARIABLE, azure.offer("oscar", {**blobs, "d/folder": b"", "e/other": b"1"}, "rl"))
    azure.page = 2
    found = list_blobs(f"azure:{ACCOUNT}/oscar/d", FAST)
    assert {blob.name: blob.size for blob in found} == {name[2:]: len(data) for name, data in blobs.items()}
    assert all(blob.md5 for blob in found) and len(azure.queries) == 3
    assert "azure" not in azure.queries[0] and azure.queries[0].endswith(CANARY)


@pytest.mark.fault("S06")
def test_a_token_without_that_right_lists_nothing(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AccessError, match="no right to list"):
        list_blobs(f"azure:{ACCOUNT}/oscar/d", FAST)
    assert azure.queries == []
    given = azure.tokens["oscar"].replace("sp=r&", "")
    azure.tokens["oscar"] = token("oscar")
    monkeypatch.setenv(VARIABLE, given)
    with pytest.raises(AccessError, match="AuthenticationFailed"):
        list_blobs(f"azure:{ACCOUNT}/oscar/d", FAST)


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C"], exclude_characters="\r"), min_size=1)


@given(st.dictionaries(NAMES, st.binary(max_size=20), max_size=8), NAMES)
def test_pages_of_a_listing_are_read_as_they_were_written(blobs: dict[str, bytes], marker: str) -> None:
    page, following = listing_page(blobs, "box", "", marker)
    found, after = parse_listing(page, "here")
    assert {blob.name: (blob.size, blob.md5) for blob in found} == {
        name: (len(data), hashlib.md5(data).hexdigest()) for name, data in blobs.items()
    }
    assert after == following.strip()


def test_large_blobs_come_in_parts_each_of_them_signed(azure: Azure, tmp_path: Path) -> None:
    policy = replace(FAST, parallel_from=1 << 16, segment_bytes=1 << 15, segments=3)
    fetch(Transfer(tmp_path / "f.zip", (Source(URL),), len(DATA)), policy)
    assert (tmp_path / "f.zip").read_bytes() == DATA and len(azure.queries) > 4
    assert set(azure.queries) == {azure.tokens["oscar"]}


def test_an_empty_container_is_reported(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVIS_EXT_AZURE_SAS_NONE", azure.offer("none", {}, "rl"))
    with pytest.raises(NetworkError, match="no such container"):
        list_blobs(f"azure:{ACCOUNT}/none/d", FAST)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html/>",
        b"<EnumerationResults><Blobs><Blob><Name>a</Name></Blob></Blobs></EnumerationResults>",
        b'<!DOCTYPE x [<!ENTITY a "b">]><EnumerationResults/>',
    ],
)
def test_a_listing_that_cannot_be_read(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="cannot be read"):
        parse_listing(data, "here")


def test_digests_of_a_listing() -> None:
    assert md5_of("1B2M2Y8AsgTpgAmY7PhCfg==") == "d41d8cd98f00b204e9800998ecf8427e"
    assert md5_of("") is None and md5_of("???") is None and md5_of("YQ==") is None


def test_a_listing_without_end_is_given_up(azure: Azure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, azure.offer("oscar", {"d/a": b"1", "d/b": b"2"}, "rl"))
    page = azure.listing("oscar", {"prefix": ["d/"]}).replace(b"<NextMarker>", b"<NextMarker>d/a")
    monkeypatch.setattr(azure, "listing", lambda *_: page)
    with pytest.raises(IntegrityError, match="does not come to an end"):
        list_blobs(f"azure:{ACCOUNT}/oscar/d", replace(FAST, retries=0))
