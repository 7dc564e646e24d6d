"""Test support that is shipped: contract suites, fault injectors, a real Ceph, a real guest."""
