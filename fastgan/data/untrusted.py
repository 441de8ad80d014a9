"""Reading files that may be damaged or hostile: no more memory than they are worth, no more than a line of reasons."""

from __future__ import annotations

from typing import BinaryIO

from fastgan import memory

PIECE = 2**20


def read_exactly(stream: BinaryIO, count: int) -> bytearray:
    """The `count` bytes that are left in a stream.

    Read in pieces, and one byte further than declared: memory follows what the stream really holds, so a header that
    lies costs nothing, and a compressed stream reaches its end and verifies its checksum. Raises `ValueError` with
    what was found when the stream holds fewer or more, and before reading when it declares more than there is memory.
    """
    if count > (held := memory.limit()):
        raise ValueError(f"its header declares {count} bytes, expected at most the {held} that fit here")
    data = bytearray()
    while len(data) <= count and (piece := stream.read(min(PIECE, count + 1 - len(data)))):
        data += piece
    if len(data) != count:
        found = "more" if len(data) > count else f"{len(data)}"
        raise ValueError(f"{found} bytes of data found, expected the {count} that its header declares")
    return data
