"""A real web server on this machine, with the faults that real ones have."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import pytest
from data_samples import children_of

# Debian has it where only root looks.
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
CONFIG = """
daemon off;
{user}
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {maps}
    server {{
        listen 127.0.0.1:{port};
        location = /alive {{ return 204; }}
        location / {{
            root {root};
            {location}
        }}
    }}
}}
"""


class Nginx:
    """One server, its files in `folder`, serving `folder`/root and what `location` says."""

    def __init__(self, folder: Path, *, maps: str = "", location: str = "") -> None:
        if NGINX is None:
            pytest.skip("nginx is not installed (Debian: apt-get install nginx-light)")
        self.folder = folder
        self.root = folder / "root"
        self.root.mkdir(parents=True)
        self._texts = {"maps": maps, "location": location.replace("{folder}", str(folder))}
        self._port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        config = CONFIG.format(
            # Started by root it would give up root's rights, and with them the test's folder.
            user="user root;" if os.geteuid() == 0 else "",
            folder=self.folder,
            root=self.root,
            port=self._port,
            **self._texts,
        )
        (self.folder / "nginx.conf").write_text(config)
        assert NGINX is not None
        self._process = subprocess.Popen(
            [NGINX, "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")],
            stderr=subprocess.PIPE,
        )
        until = time.monotonic() + 20
        while not self._is_alive():
            assert self._process.poll() is None, self._process.communicate()[1]
            assert time.monotonic() < until, "nginx does not answer"
            time.sleep(0.01)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.communicate()
            self._process = None

    def cut_connections(self) -> None:
        """Kill the worker, which holds them all; nginx starts another."""
        assert self._process is not None
        for worker in children_of(self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)

    def answers(self) -> list[tuple[str, str]]:
        """(path, status) of every request, in the order in which they ended."""
        lines = [line.split('"') for line in (self.folder / "access.log").read_text().splitlines()]
        answers = [(parts[1].split()[1], parts[2].split()[0]) for parts in lines]
        return [answer for answer in answers if answer[0] != "/alive"]

    def _is_alive(self) -> bool:
        with suppress(OSError), urlopen(f"{self.address}/alive", timeout=5):
            return True
        return False


@contextmanager
def nginx(folder: Path, *, maps: str = "", location: str = "") -> Iterator[Nginx]:
    server = Nginx(folder, maps=maps, location=location)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
