"""The build: metadata stands in pyproject.toml; the native engine in csrc/ will be compiled from here."""

from setuptools import setup

setup()
