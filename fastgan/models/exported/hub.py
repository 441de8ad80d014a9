"""Exported files to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from fastgan.errors import FastganError, first_line
from fastgan.files import StrPath


def push(repository: str, folder: StrPath, files: list[str]) -> str:
    """Upload these files of `folder` to a model repository, made if it is not there; returns the commit's address.

    Raises `FastganError` when nobody is logged in, the name cannot be, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(repository, exist_ok=True)
        return HfApi().upload_folder(repo_id=repository, folder_path=Path(folder), allow_patterns=files,
                                     commit_message="Generator exported by fastgan").commit_url
    except Exception as error:  # what a network, a token and a name can be wrong in
        raise FastganError(f"--push {repository}: {first_line(error)}; the files are in {folder}") from error
