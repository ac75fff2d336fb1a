"""Several processes that run as one: they meet, agree to stop, and end together.

Process 0 listens at the coordinator's port, and every other one reports to it there
before JAX takes that port over: so it can be said who is missing, which JAX would
not. The connections stay: the system closes those of a process that dies, and so the
others know at once, where JAX would wait in a collective.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import json
import os
import socket
import sys
import threading
import time
from typing import Any
from typing import NoReturn

from absl import logging
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from vatt_jax import platforms
from vatt_jax.distributed import interrupt
from vatt_jax.errors import UserError

_TELL_SECONDS = 20.0    # from one word about who is missing to the next
_DEAD_SECONDS = 30      # a host that does not answer for so long is taken for dead
_LAG = 2                # steps that a vote may take


class _Peer:
  """Another process: a connection of lines, each a message in JSON."""

  def __init__(self, connection: socket.socket):
    connection.settimeout(None)
    for option, value in (('SO_KEEPALIVE', 1), ('TCP_KEEPIDLE', _DEAD_SECONDS // 3),
                          ('TCP_KEEPINTVL', _DEAD_SECONDS // 3), ('TCP_KEEPCNT', 2)):
      if hasattr(socket, option):    # macOS lacks some
        level = socket.SOL_SOCKET if option.startswith('SO') else socket.IPPROTO_TCP
        connection.setsockopt(level, getattr(socket, option), value)
    self._connection = connection
    self._lines = connection.makefile('r', encoding='utf-8')

  def send(self, **message: Any) -> None:
    """Sends; to one that is gone, nothing."""
    with contextlib.suppress(OSError):
      self._connection.sendall(json.dumps(message).encode() + b'\n')

  def receive(self) -> dict[str, Any] | None:
    """Waits for a message; None if the other is gone."""
    try:
      line = self._lines.readline()
      return json.loads(line) if line.endswith('\n') else None
    except (OSError, ValueError):
      return None

  def close(self) -> None:
    self._lines.close()
    self._connection.close()


@contextlib.contextmanager
def joined(coordinator: str, num_processes: int, process_id: int,
           start_timeout_seconds: float) -> Iterator[None]:
  """Within this context the process is one of many.

  If another dies or fails, this one says so in a line and ends, whatever it is at.

  Args:
    coordinator: HOST:PORT, where process 0 listens.
    num_processes: how many there are.
    process_id: which of them this is, from 0.
    start_timeout_seconds: how long to wait for the others.

  Raises:
    UserError: the numbers make no sense, or somebody is missing.
  """
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdigit() or not 0 <= process_id < num_processes:
    raise UserError(
        f'--coordinator={coordinator} --num_processes={num_processes} --process_id='
        f'{process_id}: expected HOST:PORT, a number, and one from 0 to less than that')
  here = dict(process_id=process_id, num_processes=num_processes,
              host=socket.gethostname())
  meet = _gather if process_id == 0 else _report
  with contextlib.ExitStack() as stack:
    peers, hosts = meet(host, int(port), here,
                        time.monotonic() + start_timeout_seconds, stack)
    stack.pop_all()    # they stay open as long as the process lives
  jax.distributed.initialize(
      coordinator, num_processes, process_id, cluster_detection_method='deactivate',
      initialization_timeout=int(start_timeout_seconds),
      heartbeat_timeout_seconds=_DEAD_SECONDS)
  platforms.check()    # all must ask for devices before any can go on
  if process_id:
    logging.set_verbosity(logging.WARNING)    # the first one's log is enough
  watch = _Watch(peers, hosts)
  try:
    yield
  except interrupt.Interrupted:    # of which all have heard (`agreement`)
    watch.part()
    raise
  except Exception as e:
    watch.tell(f'process {process_id} on {here["host"]} failed: {e}')
    raise
  watch.part()


def _gather(host: str, port: int, here: Mapping[str, Any], deadline: float,
            stack: contextlib.ExitStack) -> tuple[dict[int, _Peer], dict[int, str]]:
  """Process 0: waits for all others.  -> connections, and names of the hosts."""
  where, count = f'{host}:{port}', here['num_processes']
  peers, hosts = {}, {0: here['host']}
  try:
    server = socket.create_server(
        ('', port), dualstack_ipv6=socket.has_dualstack_ipv6(),
        family=socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET)
  except OSError as e:
    raise UserError(f'--coordinator={where}: process 0 cannot listen at the port '
                    f'({e.strerror}); choose another') from e

  def fail(why, *others):
    for peer in (*peers.values(), *others):
      peer.send(error=why)
    raise UserError(why)

  def missing():
    ids = ', '.join(str(i) for i in range(count) if i not in hosts)
    there = ', '.join(f'{i} on {name}' for i, name in sorted(hosts.items()))
    return f'of {count} processes these did not come to {where}: {ids} (here: {there})'

  tell = time.monotonic() + _TELL_SECONDS
  with server:
    while len(hosts) < count:
      if time.monotonic() > deadline:
        fail(missing())
      if time.monotonic() > tell:
        tell += _TELL_SECONDS
        logging.warning('Waiting: %s', missing())
        for peer in peers.values():
          peer.send(waiting=missing())
      server.settimeout(0.2)
      with contextlib.suppress(TimeoutError):
        peer, theirs = _accept(server, stack)
        if theirs is None:    # a stranger
          continue
        if theirs['num_processes'] != count or theirs['process_id'] in hosts:
          fail(f'process {theirs["process_id"]} of {theirs["num_processes"]} on '
               f'{theirs["host"]} came to {where}; expected one of {count}, and not '
               f'one of {", ".join(map(str, sorted(hosts)))}, which is there', peer)
        peers[theirs['process_id']] = peer
        hosts[theirs['process_id']] = theirs['host']
  for peer in peers.values():
    peer.send(hosts=hosts)
  return peers, hosts


def _accept(server: socket.socket, stack: contextlib.ExitStack
            ) -> tuple[_Peer, dict[str, Any] | None]:
  connection, _ = server.accept()
  peer = stack.enter_context(contextlib.closing(_Peer(connection)))
  connection.settimeout(5)
  theirs = peer.receive()
  connection.settimeout(None)
  return peer, theirs if theirs and 'num_processes' in theirs else None


def _report(host: str, port: int, here: Mapping[str, Any], deadline: float,
            stack: contextlib.ExitStack) -> tuple[dict[int, _Peer], dict[int, str]]:
  """The others: reports to process 0, and waits until all have."""
  silent = (f'--coordinator={host}:{port}: does not answer; is process 0 running '
            f'there, and can {here["host"]} reach it?')
  tell = time.monotonic() + _TELL_SECONDS
  while True:
    try:
      connection = socket.create_connection((host, port), timeout=5)
      break
    except OSError:
      now = time.monotonic()
      if now > deadline:
        raise UserError(silent) from None
      if now > tell:
        tell += _TELL_SECONDS
        logging.warning('Waiting: %s', silent)
      time.sleep(0.2)
  peer = stack.enter_context(contextlib.closing(_Peer(connection)))
  peer.send(**here)
  while True:
    message = peer.receive() or dict(
        error=f'--coordinator={host}:{port}: process 0 is gone')
    if 'error' in message:
      raise UserError(message['error'])
    if 'hosts' in message:
      return {0: peer}, {int(i): name for i, name in message['hosts'].items()}
    logging.warning('Waiting: %s', message['waiting'])


class _Watch:
  """Ends this process when another one fails or is gone."""

  def __init__(self, peers: Mapping[int, _Peer], hosts: Mapping[int, str]):
    self._peers, self._hosts = peers, hosts
    self._failed = threading.Lock()
    self._threads = [threading.Thread(target=self._listen, args=(i,), daemon=True)
                     for i in peers]
    for thread in self._threads:
      thread.start()

  def tell(self, why: str) -> None:
    """Tells the others why this process ends."""
    for peer in self._peers.values():
      peer.send(error=why)

  def part(self) -> None:
    """Says that this process is done, and waits until the others are."""
    for peer in self._peers.values():
      peer.send(done=True)
    for thread in self._threads:
      thread.join()
    for peer in self._peers.values():
      peer.close()
    jax.distributed.shutdown()

  def _listen(self, other: int) -> None:
    message = self._peers[other].receive()
    if message is None:
      self._end(f'process {other} on {self._hosts[other]} is gone')
    elif 'error' in message:
      self._end(message['error'])

  def _end(self, why: str) -> NoReturn:
    self._failed.acquire()    # the first one speaks, any other waits for the end
    self.tell(why)
    print('vatt_jax:', ' '.join(why.split()), '(the same command on every host goes on '
          'from the newest checkpoint)', file=sys.stderr)
    leave(1)


def leave(status: int, at_once: bool = False) -> NoReturn:
  """Ends the process; as one of many without a farewell, to which not all may come.

  Args:
    status: of the process.
    at_once: do not wait for the threads of libraries, which takes many seconds after
      an evaluation. All that is to be kept must be written.
  """
  if not at_once and not jax.distributed.is_initialized():
    sys.exit(status)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def is_first() -> bool:
  """Whether this is the process that writes what all have found."""
  return jax.process_index() == 0


def from_first(number: int) -> int:
  """Returns the number that process 0 has; all must ask."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.broadcast_one_to_all(np.asarray(number, np.int32)))


def all_of(true: bool) -> bool:
  """Whether it is true in every process; all must ask."""
  return bool(multihost_utils.process_allgather(np.asarray(true)).all())


@contextlib.contextmanager
def first_alone(unless: bool = False) -> Iterator[None]:
  """Process 0 does what is within, then the others do.

  Args:
    unless: nothing is left to make for the others; if all say so, none waits.
  """
  if all_of(unless):    # on which all must agree: process 0 may be making it now
    yield
    return
  if not is_first():
    multihost_utils.sync_global_devices('first')
  yield
  if is_first():
    multihost_utils.sync_global_devices('first')


def agreement() -> Callable[[int], int]:
  """A function that tells all processes, at the same call, the largest number of any.

  All must call it equally often. The answer lags behind by some calls, so that no
  process waits for its devices.
  """
  if jax.process_count() == 1:
    return lambda number: number
  mesh = Mesh(np.asarray(jax.devices()), ('devices',))
  split = NamedSharding(mesh, PartitionSpec('devices'))
  largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
  votes: collections.deque[jax.Array] = collections.deque()

  def vote(number: int) -> int:
    mine = np.full(jax.local_device_count(), number, np.int32)
    votes.append(largest(jax.make_array_from_process_local_data(split, mine)))
    return int(votes.popleft()) if len(votes) > _LAG else 0

  return vote
