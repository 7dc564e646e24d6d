"""The examples of the pages, run."""
