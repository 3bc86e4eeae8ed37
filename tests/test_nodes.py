"""Two nodes: torchrun on each, one rendezvous, and the run of one rank, also after a node or the link between them was lost.

With two network namespaces the nodes have addresses, host names and process numbers of their own, and a link that can be cut.
Where namespaces are not allowed, those tests are skipped, and only the two launches on this machine's loopback are left.
"""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Final, NamedTuple

import pytest

from lit_ppo import exit_codes
from lit_ppo.checkpoint_io import read_checkpoint
from tests.faults.harness import LAST, CommandLine, wait_for
from tests.patience import patient
from tests.test_ranks import DEADLINE_S, LONG, Start, finished, is_alive, ranks_of, same_outcome, start

__all__ = ["start"]  # a fixture
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
LINK: Final = "veth0"
UPDATES: Final = 24


class Nodes(NamedTuple):
    """Two nodes.

    Attributes:
        prefixes: What goes before a command that runs on each.
        rendezvous: Options of torchrun.
        cut: Command that cuts the link between them; empty if there is none.
    """

    prefixes: list[list[str]]
    rendezvous: list[str]
    cut: list[str]


@contextmanager
def network_namespace() -> Iterator[list[str]]:
    """What goes before a command that runs in a network namespace of its own, which ends with this process at the latest.

    Raises:
        OSError: It is not allowed, or a program is missing.
    """
    with subprocess.Popen(
        ["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        try:
            print("inside", file=holder.stdin, flush=True)
            if (said := holder.stdout.readline()) != "inside\n":
                raise PermissionError(said)
            yield ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]
        finally:
            holder.kill()


@contextmanager
def two_namespaces(directory: Path) -> Iterator[Nodes]:
    """Two network namespaces joined by a pair of virtual network devices; skips the test where that is not allowed.

    Each knows both by name, as machines do. It has process numbers of its own, so that the ranks cannot kill each other.
    """
    addresses, hosts = {"node0": "10.83.0.1", "node1": "10.83.0.2"}, directory / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in addresses.items()))
    inside = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "sh", "-c"]
    with ExitStack() as stack:
        try:
            enter = {name: stack.enter_context(network_namespace()) for name in addresses}
        except OSError as error:
            pytest.skip(f"network namespaces are not allowed here, so two nodes are tested on loopback only: {error}")
        peer = ["peer", "name", LINK, "netns", enter["node1"][1].split("/")[2]]
        subprocess.run([*enter["node0"], "ip", "link", "add", LINK, "type", "veth", *peer], check=True)
        prefixes = []
        for name, address in addresses.items():
            subprocess.run([*enter[name], "ip", "address", "add", f"{address}/24", "dev", LINK], check=True)
            for device in ("lo", LINK):
                subprocess.run([*enter[name], "ip", "link", "set", device, "up"], check=True)
            names = f'mount --bind "$0" /etc/hosts && hostname {name} && "$@"; exit $?'
            prefixes.append([*enter[name], *inside, names, str(hosts)])
        yield Nodes(prefixes, ["--rdzv-endpoint=node0:29400"], [*enter["node0"], "ip", "link", "set", LINK, "down"])


@contextmanager
def loopback(directory: Path) -> Iterator[Nodes]:
    """This machine as both nodes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    yield Nodes([[], []], [f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1"], [])


@pytest.fixture(params=[two_namespaces, loopback], ids=["namespaces", "loopback"])
def nodes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Nodes]:
    with request.param(tmp_path) as nodes:
        yield nodes


def started(start: Start, nodes: Nodes, name: str, updates: int, *options: str, **settings: Any) -> list[CommandLine]:
    """The same run on both nodes, one rank on each."""
    rendezvous = ["--rdzv-backend=c10d", "--rdzv-id=run", *nodes.rendezvous]
    torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *rendezvous, *options, "-m", "lit_ppo"]
    settings |= {"trainer.devices": 1, "trainer.num_nodes": 2}
    return [start(name, 2, updates, launcher=torchrun, prefix=prefix, **settings) for prefix in nodes.prefixes]


def code_of_zombie(pid: int) -> int:
    """Exit code of a process that has ended and was not awaited."""
    return os.waitstatus_to_exitcode(int(Path(f"/proc/{pid}/stat").read_text().split()[-1]))


def environments_of(node: CommandLine) -> list[int]:
    """Processes of its environments."""
    return [pid for pid in node.processes() if b"lit_ppo.bridge" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def rank_of(node: CommandLine) -> int:
    """Process number of its rank."""
    return int(wait_for(lambda: ranks_of(node, 0), "the rank", DEADLINE_S)[0])


def test_two_nodes_make_the_run_of_one_rank(nodes: Nodes, start: Start, tmp_path: Path) -> None:
    finished(start("one", 1, UPDATES))
    first, second = (finished(node) for node in started(start, nodes, "two", UPDATES))
    assert same_outcome(tmp_path / "one", tmp_path / "two")
    assert len([out for out in (first.out, second.out) if out]) == 1  # one voice


def test_run_of_two_nodes_goes_on_by_itself_after_a_rank_was_killed(nodes: Nodes, start: Start, tmp_path: Path) -> None:
    finished(start("undisturbed", 1, UPDATES))
    both = started(start, nodes, "killed", UPDATES, "--max-restarts=3", checkpoint__every_n_updates=4)
    wait_for((tmp_path / "killed" / LAST).exists, "the first checkpoint", DEADLINE_S)
    os.kill(rank_of(both[1]), signal.SIGKILL)
    for node in both:
        finished(node)
    assert same_outcome(tmp_path / "undisturbed", tmp_path / "killed")


@pytest.mark.parametrize("nodes", [two_namespaces], indirect=True, ids=["namespaces"])
def test_cut_link_ends_the_ranks_of_both_nodes_within_the_limit(nodes: Nodes, start: Start, tmp_path: Path) -> None:
    both = started(start, nodes, "cut", LONG, checkpoint__every_n_updates=1)
    wait_for((tmp_path / "cut/checkpoints/last.previous.ckpt").exists, "the second checkpoint", DEADLINE_S)
    ranks = [rank_of(node) for node in both]
    assert all(environments_of(node) for node in both)
    subprocess.run(nodes.cut, check=True)
    cut_at = monotonic()
    wait_for(lambda: not any(is_alive(pid) for pid in ranks), "the end of both ranks", 15.0)
    assert monotonic() - cut_at < patient(10.0)
    # the agent of the second node waits for the rendezvous, and has not asked for its rank's code yet
    assert code_of_zombie(ranks[1]) == exit_codes.RANK
    wait_for(lambda: not environments_of(both[1]), "the end of the environments", 10.0)
    subprocess.run([*nodes.cut[:-1], "up"], check=True)  # now it hears that the rendezvous is closed
    for node, other in zip(both, (1, 0), strict=True):
        ended = node.ended(DEADLINE_S, is_tidy=False)
        assert f"lit_ppo: error: rank {other} has not answered for " in ended.err, ended
        assert ended.code == 1, ended  # torchrun's own
        if other == 1:
            assert f"failed (exitcode: {exit_codes.RANK})" in ended.err, ended
    assert read_checkpoint(tmp_path / "cut" / LAST)["RolloutDataModule"]["update"] < LONG
    finished(start("cut", 1, LONG, ckpt_path="last"))
    finished(start("straight", 1, LONG))
    assert same_outcome(tmp_path / "straight", tmp_path / "cut")
