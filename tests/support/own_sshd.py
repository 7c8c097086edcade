"""An OpenSSH server of a test's own: a free port, keys made for it, a home folder of its own, ended with the test.

What logs in finds a `ray` whose `stop` ends the processes of one cluster: Ray's own ends every Ray on the machine.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil

SHIM = """\
#!/bin/sh
if [ "$1" = stop ]; then exec {python} {here} {folder}; fi
exec {bin}/ray "$@"
"""
CONNECT = """\
#!/bin/bash
exec 3<>/dev/tcp/127.0.0.1/{port}
cat <&3 &
cat >&3
kill $!
"""


def missing() -> str:
    """What a machine lacks for it; empty where it can run."""
    absent = [name for name in ("ssh", "ssh-keygen", "rsync", "make", "bash") if shutil.which(name) is None]
    if sshd() is None:
        absent.append("sshd (Debian: openssh-server)")
    return f"not installed: {', '.join(absent)}" if absent else ""


def sshd() -> str | None:
    """Where the server is; it does not lie on a user's PATH."""
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class OwnSshd:
    """The server; `auth` is what a cluster file says of it. Raises RuntimeError when it does not answer."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.home = folder, folder / "home"
        self._make_home()
        for name in ("host_key", "key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True, timeout=60)
        shutil.copy(folder / "key.pub", folder / "authorized_keys")
        settings = {
            "Port": port, "ListenAddress": "127.0.0.1", "HostKey": folder / "host_key", "PidFile": folder / "sshd.pid",
            "AuthorizedKeysFile": folder / "authorized_keys", "PasswordAuthentication": "no", "UsePAM": "no",
            "KbdInteractiveAuthentication": "no", "StrictModes": "no", "PermitRootLogin": "prohibit-password",
            "AllowUsers": getpass.getuser(), "SetEnv": f"HOME={self.home} RAY_TMPDIR={folder} HF_HUB_OFFLINE=1",
        }  # fmt: skip
        (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        connect = folder / "connect"
        connect.write_text(CONNECT.format(port=port))
        connect.chmod(0o755)
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where a server of root's wants to keep nothing
        log = (folder / "sshd.log").open("w")
        self.process = subprocess.Popen([sshd(), "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
        self.auth = {
            "ssh_user": getpass.getuser(), "ssh_private_key": str(folder / "key"), "ssh_proxy_command": str(connect),
        }  # fmt: skip
        self._wait()

    def _make_home(self) -> None:
        """As after `make install`: what it made is newer than the lock file, so that it does nothing again."""
        commands = self.home / "hatch-ray" / ".venv" / "bin"
        commands.mkdir(parents=True)
        ours = Path(sys.executable).parent
        (commands / "ray").write_text(
            SHIM.format(python=sys.executable, here=Path(__file__).resolve(), folder=self.folder, bin=ours)
        )
        (commands / "hatch").write_text(f'#!/bin/sh\nexec {sys.executable} -m hatch_ray.cli "$@"\n')
        for command in commands.iterdir():
            command.chmod(0o755)
        (self.home / ".bashrc").touch()

    def _wait(self) -> None:
        options = ["-o", f"ProxyCommand={self.auth['ssh_proxy_command']}", "-o", "StrictHostKeyChecking=no"]
        options += ["-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "-i", self.auth["ssh_private_key"]]
        end = time.monotonic() + 20
        while True:
            command = ["ssh", *options, f"{self.auth['ssh_user']}@127.0.0.1", "echo $HOME"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            if done.stdout.strip() == str(self.home):
                return
            if time.monotonic() > end or self.process.poll() is not None:
                self.stop()
                raise RuntimeError(f"{done.stdout}{done.stderr}{(self.folder / 'sshd.log').read_text()}")
            time.sleep(0.3)

    def stop(self) -> None:
        """End the server and what is logged in."""
        found = [self.process.pid, *(child.pid for child in psutil.Process(self.process.pid).children(recursive=True))]
        for pid in found:
            if psutil.pid_exists(pid):
                os.kill(pid, 9)
        self.process.wait(timeout=10)


def processes_of(folder: Path) -> list[psutil.Process]:
    """The processes of the Ray cluster whose sessions lie in folder/ray, their workers included."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(f"{folder}/ray/session_" in word for word in process.info["cmdline"] or []):
            found += [process, *process.children(recursive=True)]
    return list(dict.fromkeys(found))


def stop_ray(folder: Path) -> None:
    """What `ray stop` does, to one cluster."""
    found = processes_of(folder)
    for process in found:
        process.terminate()
    _, alive = psutil.wait_procs(found, timeout=10)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=10)


if __name__ == "__main__":
    stop_ray(Path(sys.argv[1]))
