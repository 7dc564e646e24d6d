"""`volcore`, allowed to serve more NBD clients at once than it does by default."""

import functools

from volcore import daemon
from volcore.cli.main import main
from volcore.nbd import NbdServer

CONNECTIONS_MAX = 4096

if __name__ == "__main__":
    daemon.NbdServer = functools.partial(NbdServer, connections_max=CONNECTIONS_MAX)
    main()
