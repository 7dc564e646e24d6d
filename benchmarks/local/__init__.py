"""The embedded backend against its bars, rivals in the same run: `make bench-local`."""
