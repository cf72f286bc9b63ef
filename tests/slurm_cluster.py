"""A real SLURM for tests: a login node and compute nodes in Linux namespaces of one machine.

Each node has its own processes, host name, network address and /dev/shm; the file system is shared,
as on a cluster. The login node also runs slurmctld and the bridge that the nodes hang on. All nodes
live below the login node's PID namespace: killing its first process ends everything that was
started here, and the kernel takes interfaces and mounts away with it.
"""

import ctypes
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from slurm_files import COMPUTE_NODE, LOGIN_NODE, SLURM_CONF, TOOL

PACKAGES = "slurmctld slurmd slurm-client munge iproute2"
TOOLS = ("sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OWN_NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid")
SUBNET = "10.87.3"
PR_SET_PDEATHSIG = 1  # of Linux's prctl
LONGEST = 60  # characters of a folder that still fit into the address of a unix socket


def why_impossible() -> str | None:
    """Why no cluster can be had on this machine, as a reason to skip; None where it can."""
    for program in ("slurmctld", "slurmd", "sbatch", "munged", "ip", "nsenter", "unshare"):
        if shutil.which(program, path=SYSTEM) is None:
            return f"no {program}: apt-get install --no-install-recommends {PACKAGES}"
    tried = subprocess.run(
        ["unshare", "--fork", *OWN_NAMESPACES, "ip", "link", "add", "bridge", "type", "bridge"],
        capture_output=True,
        text=True,
    )
    return f"no namespaces with a bridge: {tried.stderr.strip()}" if tried.returncode else None


def end_with_parent() -> None:
    """However the tests end, the cluster ends with them."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def child_of(process: int, *, timeout: float = 10) -> int:
    """The process id of the first child of a process, once it has one."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.01)
    raise TimeoutError(f"process {process} has no child after {timeout} s")


def wait_until(
    condition: Callable[[], object], timeout: float, what: str | Callable[[], str]
) -> None:
    until = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(
                f"not within {timeout} s: {what if isinstance(what, str) else what()}"
            )
        time.sleep(0.1)


class SlurmCluster:
    """`with SlurmCluster(folder, nodes=3) as cluster:` `cluster.environment` finds its tools."""

    def __init__(self, folder: Path, *, nodes: int, max_array_size: int = 1001) -> None:
        assert re.fullmatch(r"[\w./-]+", str(folder)), folder
        assert len(str(folder)) <= LONGEST, folder
        self.folder = folder
        self.addresses = {f"n{i}": f"{SUBNET}.{10 + i}" for i in range(1, nodes + 1)}
        self.max_array_size = max_array_size
        self.environment = os.environ | {"PATH": f"{folder}/bin:{os.environ['PATH']}"}
        self._inits: dict[str, int] = {}  # first process of each compute node, as seen here

    def __enter__(self) -> "SlurmCluster":
        self._write_files()
        command = ["unshare", "--fork", "--kill-child", *OWN_NAMESPACES]
        script = f"{self.folder}/login-node.sh"
        self._login = self._spawn([*command, "bash", script], "login", before=end_with_parent)
        try:
            self._head = child_of(self._login.pid)
            for tool in TOOLS:
                path = self.folder / "bin" / tool
                path.write_text(TOOL.format(folder=self.folder, pid=self._head, tool=tool))
                path.chmod(0o755)
            wait_until(self.node_states, 30, "slurmctld")
            for node in self.addresses:
                self._boot(node)
            self.wait_idle()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._login.kill()  # and with it, by --kill-child, the login node and all below it
        self._login.wait()
        wait_until(lambda: not Path(f"/proc/{self._head}").exists(), 20, "the end of the cluster")

    def _write_files(self) -> None:
        for name in ("bin", "log", "run", "state", "spool", "munge"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "munge").chmod(0o711)
        key = self.folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        names = "".join(f"{address} {node}\n" for node, address in self.addresses.items())
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{SUBNET}.1 login\n{names}")
        values = {
            "folder": self.folder,
            "subnet": SUBNET,
            "nodes": len(self.addresses),
            "last": 10 + len(self.addresses),
            "max_array_size": self.max_array_size,
        }
        files = {
            "slurm.conf": SLURM_CONF,
            "login-node.sh": LOGIN_NODE,
            "compute-node.sh": COMPUTE_NODE,
        }
        for name, text in files.items():
            (self.folder / name).write_text(text.format(**values))

    def _spawn(
        self, command: list[str], log: str, *, before: Callable[[], None] | None = None
    ) -> "subprocess.Popen[bytes]":
        with (self.folder / "log" / f"{log}.txt").open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env={"PATH": SYSTEM, "HOME": "/root", "LANG": "C.UTF-8"},
                start_new_session=True,
                preexec_fn=before,
            )

    def _enter(self, *namespaces: str) -> list[str]:
        return ["nsenter", "--target", str(self._head), *namespaces]

    def _boot(self, node: str) -> None:
        command = [*self._enter(*OWN_NAMESPACES), "unshare", "--fork", "--kill-child"]
        script = [f"{self.folder}/compute-node.sh", node, self.addresses[node]]
        process = self._spawn([*command, *OWN_NAMESPACES, "bash", *script], node)
        init = child_of(child_of(process.pid))
        self._inits[node] = init
        # Its own namespaces come with its first instruction, not with its process id.
        outside = os.readlink(f"/proc/{self._head}/ns/net")
        wait_until(lambda: os.readlink(f"/proc/{init}/ns/net") != outside, 10, f"network of {node}")
        self._ip("link", "delete", node, check=False)
        self._ip("link", "add", node, "type", "veth", "peer", "name", "eth0", "netns", str(init))
        self._ip("link", "set", node, "master", "bridge", "up")

    def _ip(self, *arguments: str, check: bool = True) -> None:
        # The network namespace alone: process ids are those of this side.
        command = [*self._enter("--net"), "ip", *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0 or not check, done.stderr

    def sh(self, *command: str, check: bool = True) -> str:
        """The output of one of SLURM's tools."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=90
        )
        assert done.returncode == 0 or not check, (command, done.stderr)
        return done.stdout.strip()

    def node_states(self) -> dict[str, str]:
        found = self.sh("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T", check=False)
        return dict(line.split() for line in found.splitlines())

    def wait_idle(self, timeout: float = 60) -> None:
        idle = dict.fromkeys(self.addresses, "idle")
        wait_until(lambda: self.node_states() == idle, timeout, lambda: str(self.node_states()))

    def power_off(self, node: str) -> None:
        """As when the plug is pulled: nobody hears that the node's connections are gone."""
        self.unplug(node)
        os.kill(self._inits.pop(node), signal.SIGKILL)

    def power_on(self, node: str) -> None:
        self._boot(node)
        self.resume(node)

    def resume(self, node: str) -> None:
        """Wait for a node that was away to be in use again, telling SLURM that it may be."""
        good_since = time.monotonic()

        def is_settled() -> bool:
            nonlocal good_since
            state = self.node_states().get(node, "")
            # Drained: what ran there when it was cut off took longer to end than SLURM waits.
            if state.startswith(("down", "drain")):
                self.sh("scontrol", "update", f"nodename={node}", "state=resume", check=False)
            if state not in ("idle", "mixed", "allocated"):
                good_since = time.monotonic()
            return time.monotonic() - good_since > 2

        wait_until(is_settled, 60, lambda: f"{node}: {self.node_states()}")

    def unplug(self, node: str) -> None:
        """Cut a node from the network; what runs there goes on."""
        self._ip("link", "set", node, "down")

    def plug_in(self, node: str) -> None:
        self._ip("link", "set", node, "up")
        self.isolate(node, False)

    def isolate(self, node: str, isolated: bool = True) -> None:
        """Let a node reach the login node, but no other isolated node."""
        command = ["bridge", "link", "set", "dev", node, "isolated", "on" if isolated else "off"]
        subprocess.run([*self._enter("--net"), *command], check=True)

    def stop_controller(self) -> None:
        pid = (self.folder / "run" / "slurmctld.pid").read_text().strip()
        command = [*self._enter(*OWN_NAMESPACES), "kill", "-TERM", pid]
        subprocess.run(command, check=True)
        gone = [*self._enter(*OWN_NAMESPACES), "test", "-e", f"/proc/{pid}/exe"]
        wait_until(lambda: subprocess.run(gone).returncode, 30, "the end of slurmctld")

    def start_controller(self) -> None:
        command = [*self._enter(*OWN_NAMESPACES), "slurmctld", "-D"]
        self._spawn([*command, "-f", f"{self.folder}/slurm.conf"], "slurmctld")
        wait_until(self.node_states, 30, "slurmctld")

    def mend(self) -> None:
        """Put everything back in order, whatever a test has left."""
        wait_until(lambda: "UP" in self.sh("scontrol", "ping", check=False), 30, "slurmctld")
        self.sh("scancel", f"--user={os.getuid()}")
        for node in self.addresses:
            if node in self._inits:
                self.plug_in(node)
            else:
                self._boot(node)
        for node in self.addresses:
            self.resume(node)
        self.wait_idle()

    def on(self, node: str, *command: str) -> list[str]:
        """A command line that runs on a compute node."""
        init = str(self._inits[node])
        return ["nsenter", "--target", init, *OWN_NAMESPACES, *command]

    def job(self, job: str, field: str) -> str:
        """A field of `scontrol show job`; JobId of an array task is its own, not the array's."""
        found = self.sh("scontrol", "-o", "show", "job", job)
        match = re.search(rf"(?:^| ){field}=(.*?)(?= \w+=|$)", found)
        assert match, found
        return match[1]
