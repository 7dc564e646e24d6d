"""Benchmarks: each prints medians and ratios to a rival measured in the same run."""
