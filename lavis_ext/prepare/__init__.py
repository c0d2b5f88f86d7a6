"""From a card to files on the disk: plan, fetch, unpack, count and stamp, whole or in part, and look after it later."""

from __future__ import annotations

from lavis_ext.prepare.planning import Plan, PlanItem
from lavis_ext.prepare.report import Outcome, Report, SplitState
from lavis_ext.prepare.run import plan, prepare
from lavis_ext.prepare.selection import PrepareOptions
from lavis_ext.prepare.state import Finding, VerifyReport, status, verify

__all__ = ["Finding", "Outcome", "Plan", "PlanItem", "PrepareOptions", "Report", "SplitState", "VerifyReport"]
__all__ += ["plan", "prepare", "status", "verify"]
