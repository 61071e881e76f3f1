"""What the loopback servers have in common: where they are recorded, and where they answer."""

from pathlib import Path
from typing import ClassVar

from esr_eval.errors import EsrError
from esr_eval.servers.environment import server_folder
from esr_eval.servers.processes import LOOPBACK, Processes


class LoopbackServer:
    """A server on this machine: start, ask, break and stop it.

    Attributes:
        processes: What runs.
    """

    name: ClassVar[str]
    main: ClassVar[str]
    """The process that has the HTTP interface."""

    def __init__(self, folder: Path | None = None) -> None:
        """Look at what runs already.

        Args:
            folder: Where logs and records lie; None: the user's cache.
        """
        self.processes = Processes(folder or server_folder(self.name) / "run")

    @property
    def running(self) -> bool:
        """Whether its HTTP interface lives; it may not answer yet."""
        return self.processes.alive(self.main)

    @property
    def url(self) -> str:
        """Address of the HTTP interface.

        Raises:
            EsrError: No server has been started.
        """
        return f"http://{LOOPBACK}:{self._port(self.main)}"

    def _port(self, process: str) -> int:
        """Port of one of its processes.

        Raises:
            EsrError: No server has been started.
        """
        if "ports" not in self.processes.facts:
            raise EsrError(
                f"No {self.name} server has been started here: `esr-eval serve {self.name} start`."
            )
        return int(self.processes.facts["ports"][process])
