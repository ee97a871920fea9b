"""`lmkit dashboard`: every run on one local page, which follows them while they train.

The page is lmkit's own. trackio 0.43 overlays curves well, but has no summary of runs, hides
config differences, logarithms and samples behind a setting or a page each, and would need a
second copy of every run in its database, fed through calls that it does not document.
"""

import logging
import os
import sys
import webbrowser

from lmkit.errors import UserError
from lmkit.pages.dashboard import HOST, bind
from lmkit.pages.feed import Outputs
from lmkit.run import run_directories
from lmkit.system.paths import located

log = logging.getLogger(__name__)


def dashboard(*, outputs: str = "outputs", port: int = 7007, open_browser: bool = True) -> None:
    """Show all runs on a local page: curves, live, config differences, samples.

        lmkit dashboard
        lmkit dashboard outputs=elsewhere port=0

    outputs: the directory of the runs.
    port: taken if it is free, else the next free one; 0 is any.
    open_browser: whether to open the page.
    """
    folder = located(outputs).absolute()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"outputs={outputs}: not a directory")
    if not run_directories(folder):
        log.warning("no runs in %s yet: the page shows them as they start", folder)
    with bind(port, Outputs(folder)) as server:
        url = f"http://{HOST}:{server.server_port}/"
        print(f"{url}  shows the runs in {folder}; Ctrl-C ends it", flush=True)
        if open_browser and _has_screen():
            webbrowser.open(url)
        server.serve_forever()


def _has_screen() -> bool:
    """Whether a browser would open in a window rather than in the terminal."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
