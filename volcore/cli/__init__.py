"""The `volcore` command: one module per noun, gRPC only (except `serve` and `version`)."""
