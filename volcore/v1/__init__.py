"""The wire contract, generated from proto/volcore/v1 by scripts/protos; never edited."""
