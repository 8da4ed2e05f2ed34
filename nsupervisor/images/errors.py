"""The errors of this package."""

import errno


class ImageError(Exception):
    """An image cannot be used. The text says what is wrong with which part of it, and what to do if that is known."""


class ImageUnavailableError(OSError):
    """A program cannot be started from its image. The text says why, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.ENOENT, message)

    def __str__(self) -> str:
        return str(self.strerror)
