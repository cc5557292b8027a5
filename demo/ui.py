"""What `make ui` runs: Dagster's webserver and daemon over workspace.yaml, in the demo's home."""

import os
import signal
import sys
from pathlib import Path

from demo import home
from demo.definitions import FOLDER
from demo.launch import WORKSPACE


def main() -> None:
    """Become `dagster dev`; further arguments (-p 4000) are passed on. Ends with Ctrl-C."""
    home.prepare(FOLDER)
    os.environ["PYTHONWARNINGS"] = "ignore:Function `dev_command`"  # `dg dev` has no workspace.yaml
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored when started in the background, and Dagster inherits it
    dagster = Path(sys.executable).with_name("dagster")
    print("Dagster's UI is at the address below once it says `Serving`; Ctrl-C ends it.", flush=True)
    os.execv(dagster, [str(dagster), "dev", "-w", str(WORKSPACE), *sys.argv[1:]])


if __name__ == "__main__":
    main()
