"""What a user can check on the machine at hand."""

from fastgan.verify.certificate import certificate

__all__ = ["certificate"]
