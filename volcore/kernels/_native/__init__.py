"""Compiled kernels, built from `_ext/`. Import `volcore.kernels.<name>` instead."""
