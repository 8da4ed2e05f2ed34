"""The error of this package."""


class ImageError(Exception):
    """An image cannot be used. The text says what is wrong with which part of it, and what to do if that is known."""
