"""A run as one HTML page that needs no other file and no network."""

from fastgan.report.run import is_run, write

__all__ = ["is_run", "write"]
