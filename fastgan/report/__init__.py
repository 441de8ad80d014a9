"""What a run has done and what has become of it, as one page without anything outside of it."""

from fastgan.report.run import is_run, write

__all__ = ["is_run", "write"]
