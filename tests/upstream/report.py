"""`python -m tests.upstream.report`: what of LAVIS and VPGTrans was checked and started, numbers compared, the worst
difference. It runs the tests of this folder; the environment says where upstream's YAMLs and results are.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest

SUBJECTS = {
    "test_check_passes": "run YAMLs checked",
    "test_model_files_pass_or_say_what_they_are": "model YAMLs checked",
    "test_they_start": "run YAMLs started",
    "test_script": "snippets",
}


class Counts:
    """Outcomes by subject, and the numbers that tests compared (`record_property`)."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Counter[str]] = {}
        self.compared = 0
        self.texts = 0
        self.worst = (0.0, "")

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Counts the call of a test, or its set-up where that was all."""
        if report.when == "call" or (report.when == "setup" and not report.passed):
            name = report.nodeid.partition("::")[2].partition("[")[0]
            subject = SUBJECTS.get(name, "other tests")
            self.outcomes.setdefault(subject, Counter())[report.outcome] += 1
        if report.when != "teardown":
            return
        for key, value in report.user_properties:
            if key == "difference":
                self.compared += int(value[0])
                self.worst = max(self.worst, (float(value[1]), str(value[2])))
            elif key == "texts":
                self.texts += int(value)

    def lines(self) -> list[str]:
        """What the report prints."""
        found = []
        for subject in (*SUBJECTS.values(), "other tests"):
            outcome = self.outcomes.get(subject, Counter())
            skipped = f", {outcome['skipped']} skipped" if outcome["skipped"] else ""
            found.append(f"{subject}: {outcome['passed']} passed, {outcome['failed']} failed{skipped}")
        found.append(f"texts compared: {self.texts} equal")
        worst = f"{self.worst[0]:.1e} ({self.worst[1]})" if self.compared else "none compared"
        return [*found, f"numbers compared: {self.compared}", f"worst relative difference: {worst}"]


def main() -> int:
    """0 where nothing failed."""
    counts = Counts()
    code = pytest.main(
        ["-q", "--no-header", "-p", "no:cacheprovider", "tests/upstream", "tests/metrics/test_ptb.py", *sys.argv[1:]],
        [counts],
    )
    sys.stdout.write("\n".join(counts.lines()) + "\n")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
