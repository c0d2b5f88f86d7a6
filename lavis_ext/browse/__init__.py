"""The HTML that a person looks at: one offline file, drawn from what a folder holds."""

from lavis_ext.browse.run_report import write_run_report

__all__ = ["write_run_report"]
