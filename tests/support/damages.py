"""What may have become of a file."""

import contextlib
import os
import socket


def make_socket(path):
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)  # of at most 107 bytes


DAMAGES = {
    "cut short": lambda path: path.write_text('{"a": ["'),
    "a list": lambda path: path.write_text("[1, 2]\n"),
    "nested": lambda path: path.write_text("[" * 10_000),
    "other values": lambda path: path.write_text(
        '{"status": [1], "started": {"a": 1}, "step": "x", "format": [], "bytes": 1e999}'
    ),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\0\n"),
    "600 MB": lambda path: os.truncate(path, 600 << 20),
    "a FIFO": lambda path: (path.unlink(), os.mkfifo(path)),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "a socket": lambda path: (path.unlink(), make_socket(path)),
    "a loop": lambda path: (path.unlink(), path.symlink_to(path.name)),
    "endless": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
}
