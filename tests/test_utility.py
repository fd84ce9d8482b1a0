"""Reading of files that may be anything, and text that may hold anything."""

import os
import socket

import pytest

from errors import UserError, printable
from utility import open_regular, read_regular


def test_regular_files_are_read_and_links_to_them(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "file", 3) == read_regular(tmp_path / "link", 3) == b"abc"
    with pytest.raises(UserError, match="3 bytes, expected at most 2"):
        read_regular(tmp_path / "file", 2)


def test_pipes_sockets_and_devices_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    for name, kind in (("pipe", "a pipe"), ("link", "a device"), ("socket", "a socket")):
        with pytest.raises(UserError, match=f"{name}: is {kind}, expected a regular file"):
            read_regular(tmp_path / name, 10)
    listening.close()


def test_folders_and_missing_files_are_the_systems_errors(tmp_path):
    with pytest.raises(IsADirectoryError), open_regular(tmp_path):
        pass
    with pytest.raises(FileNotFoundError), open_regular(tmp_path / "none"):
        pass


def test_printable_text_is_one_line_that_no_terminal_obeys():
    assert printable("straße 写真 a b.png") == "straße 写真 a b.png"
    assert printable("a\nb\x1b[31m\u202e\udcff\t\x9b") == r"a\nb\x1b[31m\u202e\udcff\t\x9b"
