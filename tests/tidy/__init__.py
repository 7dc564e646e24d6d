"""House rules as tests: what the style guide says, the build enforces."""
