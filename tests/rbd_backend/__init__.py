"""Not called `rbd`: that would hide Ceph's own module of this name."""
