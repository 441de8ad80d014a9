"""Checks on the machine of the user."""

from fastgan.verify.certificate import certificate

__all__ = ["certificate"]
