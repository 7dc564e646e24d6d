"""Use cases: what the API does, in terms of backends and catalogs."""
