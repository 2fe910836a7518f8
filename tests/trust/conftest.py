"""One server and one folders for each worker; both cost some seconds."""

import shutil
import tempfile
from pathlib import Path

import pytest

from tiny import save_tiny
from trust.attacks import Oracle, Server, Table, World, compiled_shim


@pytest.fixture(scope="session")
def ground():
    # Not pytest's own folder: an unprivileged user must get there, too.
    folder = Path(tempfile.mkdtemp(prefix="gradsift-trials-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def shim(ground):
    return compiled_shim(ground)


@pytest.fixture(scope="session")
def server(shim):
    server = Server(shim)
    yield server
    server.close()


@pytest.fixture(scope="session")
def folders(server, ground):
    return World(server, ground, save_tiny)


@pytest.fixture(scope="session")
def oracle(folders):
    return Oracle(folders)


@pytest.fixture(scope="session")
def table():
    return Table()


@pytest.fixture
def trial(folders):
    """Make folders of trials: `trial(name of a run folder of World)`; they go with the test."""
    roots = []

    def new(base):
        roots.append(folders.copy(base))
        return roots[-1]

    yield new
    for root in roots:
        shutil.rmtree(root)
