"""The Cinder driver: `volume_driver = volcore.cinder.driver.VolcoreDriver`.

Runs in cinder-volume, next to a stock Cinder, and reaches volcore over gRPC only.
"""
