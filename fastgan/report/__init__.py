"""A run as a single HTML page that needs no other files and no network."""

from fastgan.report.run import is_run, write

__all__ = ["is_run", "write"]
