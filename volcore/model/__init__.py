"""Pure values and rules: no I/O, no clocks, no locks."""
