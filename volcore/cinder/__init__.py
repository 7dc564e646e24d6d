"""The Cinder driver: `volume_driver = volcore.cinder.driver.VolcoreDriver`.

Runs in cinder-volume, next to a stock Cinder, and reaches volcore over gRPC only.

cinder-volume runs its tools by fork. grpc's own support for that ends some of them with SIGABRT
before they begin (grpcio 1.85: 3 of 100, with calls under way), so it is off unless the environment
says otherwise; grpc looks when it is imported first.
"""

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
