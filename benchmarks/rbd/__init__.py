"""Volumes on Ceph against their bars and rivals, turn by turn: `make bench`."""
