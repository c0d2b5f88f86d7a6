"""What all tests share: the loopback server's fixtures, and no look-ups at the hub."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

pytest_plugins = ["tests.support.server"]
