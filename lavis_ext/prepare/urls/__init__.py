"""Images that annotation files list by URL, fetched to the last one that lives; an account tells of the others."""

from __future__ import annotations

from lavis_ext.prepare.urls.hosted import expand_list, fetch_hosted
from lavis_ext.prepare.urls.job import ListAccount, ListJob, read_account
from lavis_ext.prepare.urls.listing import ListOptions, fetch_images, fetch_list_files, list_account, list_files
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
    "list_files",
    "read_account",
]
