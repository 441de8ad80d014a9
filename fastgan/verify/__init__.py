"""Checks that users run on their own machine."""

from fastgan.verify.certificate import certificate

__all__ = ["certificate"]
