"""Images that annotation files list by URL, and an account of those that could not be fetched.

Lists of a few hosts go through the fetch engine (`hosted.py`), lists of the open web through img2dataset (`run.py`).
"""

from __future__ import annotations

from lavis_ext.prepare.urls.hosted import expand_list, fetch_hosted
from lavis_ext.prepare.urls.job import ListAccount, ListJob, read_account
from lavis_ext.prepare.urls.listing import ListOptions, fetch_images, fetch_list_files, list_account, list_addresses
from lavis_ext.prepare.urls.run import fetch_list

__all__ = [
    "ListAccount",
    "ListJob",
    "ListOptions",
    "expand_list",
    "fetch_hosted",
    "fetch_images",
    "fetch_list",
    "fetch_list_files",
    "list_account",
    "list_addresses",
    "read_account",
]
