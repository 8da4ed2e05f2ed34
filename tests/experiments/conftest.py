"""The laboratory of the experiments: see laboratory.py."""

from tests.experiments.laboratory import lab

__all__ = ["lab"]
