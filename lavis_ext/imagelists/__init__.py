"""Images that annotation files list by URL, fetched to the last one that lives; an account tells of the others."""

from __future__ import annotations

from lavis_ext.imagelists.account import Account, read_account
from lavis_ext.imagelists.hosted import expand_list, fetch_hosted
from lavis_ext.imagelists.job import ListJob
from lavis_ext.imagelists.listing import ListOptions, fetch_images, fetch_list_files, list_account, list_files
from lavis_ext.imagelists.run import fetch_list

__all__ = [
    "Account",
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
