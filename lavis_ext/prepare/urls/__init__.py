"""Images that annotation files list by URL, and an account of those that could not be fetched.

Lists of a few hosts go through the fetch engine (`hosted.py`), lists of the open web through img2dataset (`run.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lavis_ext.common.names import imported_on_use

if TYPE_CHECKING:
    from lavis_ext.prepare.urls.hosted import expand_list, fetch_hosted
    from lavis_ext.prepare.urls.job import ListAccount, ListJob, list_account, read_account
    from lavis_ext.prepare.urls.listing import ListOptions, fetch_images, fetch_list_files, list_addresses
    from lavis_ext.prepare.urls.run import fetch_list

_LAZY = {  # `list` and `status` read accounts only
    "ListAccount": "job",
    "ListJob": "job",
    "ListOptions": "listing",
    "expand_list": "hosted",
    "fetch_hosted": "hosted",
    "fetch_images": "listing",
    "fetch_list": "run",
    "fetch_list_files": "listing",
    "list_account": "job",
    "list_addresses": "listing",
    "read_account": "job",
}

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
__getattr__ = imported_on_use(__name__, _LAZY)
