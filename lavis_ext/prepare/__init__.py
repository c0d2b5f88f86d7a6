"""From a card to files on the disk: select, plan, execute, extract, record, report; and verify and repair them later.

Begin with `run.py`: `plan` looks once and decides, `execute_plan` does what it says. `records.py` holds what is true.
"""

from __future__ import annotations

from lavis_ext.prepare.plan import Plan, PlanItem
from lavis_ext.prepare.report import Outcome, Report, SplitState
from lavis_ext.prepare.run import execute_plan, plan, prepare
from lavis_ext.prepare.selection import PrepareOptions
from lavis_ext.prepare.verify import Finding, VerifyReport, bytes_on_disk, own_bytes, status, verify

__all__ = ["Finding", "Outcome", "Plan", "PlanItem", "PrepareOptions", "Report", "SplitState", "VerifyReport"]
__all__ += ["bytes_on_disk", "execute_plan", "own_bytes", "plan", "prepare", "status", "verify"]
