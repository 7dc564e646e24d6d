"""volcore: a block-volume service that turns a golden image into a ready VM disk."""

__version__ = "0.1.0"
