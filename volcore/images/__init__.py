"""Mechanics of image files: inspect, import, export; knows devices, but no catalog and no engine.

An image file is hostile until inspected. Raw and qcow2 are read here; other formats are read by
`qemu-img` in a cage (`cage.py`), which writes over a private NBD socket.
"""
