"""What the system refused, in words."""

from __future__ import annotations

import errno

MENDS = {
    errno.ENOSPC: "; the disk is full: make room, or write elsewhere",
    errno.EDQUOT: "; your quota is used up: make room, or write elsewhere",
    errno.EROFS: "; write elsewhere",
    errno.EMFILE: "; raise `ulimit -n`",
    errno.ENAMETOOLONG: "; give a shorter path",
}


def in_words(error: Exception) -> str:
    """What happened, to which file, and the fix where it is known; one line."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.errno is not None:
        text = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
        text += MENDS.get(error.errno, "")
    return " ".join(text.split())
