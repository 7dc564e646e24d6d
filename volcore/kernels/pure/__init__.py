"""Oracles: the shortest clear Python of every kernel, to judge the compiled code by."""
