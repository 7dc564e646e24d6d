"""gRPC in front of the engine: resolve names, convert, call, convert back. No rules of its own."""
