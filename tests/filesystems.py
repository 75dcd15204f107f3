"""File systems that are full or read-only."""

import subprocess

import pytest


def in_small_filesystem(script, size):
    """Run a shell script with a file system of `size` mounted at /mnt."""
    shell = ["unshare", "--map-root-user", "--mount", "sh", "-ec"]
    mount = f"mount -t tmpfs -o size={size} tmpfs /mnt\n"
    if subprocess.run([*shell, mount], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    return subprocess.run([*shell, mount + script], capture_output=True, text=True, timeout=300)
