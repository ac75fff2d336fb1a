"""Runs several processes as one: they connect, agree to stop, and end together.

Process 0 listens at the coordinator's port. Every other process connects to it before
JAX takes over that port, so that missing processes can be named. The connections stay
open. The system closes those of a process that dies, so the others notice at once. JAX
alone would abort all of them without a readable message (docs/decisions/0009).
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

_TELL_SECONDS = 20.0    # between two log lines about missing processes
_DEAD_SECONDS = 30      # a host that does not answer for so long counts as dead
_LAG = 2                # steps that a vote may take


class _Peer:
  """Exchanges messages with another process, as lines of JSON."""

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
    """Sends a message; does nothing if the other process is gone."""
    with contextlib.suppress(OSError):
      self._connection.sendall(json.dumps(message).encode() + b'\n')

  def receive(self) -> dict[str, Any] | None:
    """Waits for a message; returns None if the other process is gone."""
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
  """Joins this process with others while the context is open.

  If another process dies or fails, this one prints a line about it and ends at once.

  Args:
    coordinator: HOST:PORT, where process 0 listens.
    num_processes: number of processes.
    process_id: id of this process, from 0.
    start_timeout_seconds: how long to wait for the other processes.

  Raises:
    UserError: the numbers are inconsistent, or a process is missing.
  """
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdigit() or not 0 <= process_id < num_processes:
    raise UserError(
        f'--coordinator={coordinator} --num_processes={num_processes} --process_id='
        f'{process_id}: expected HOST:PORT, a number of processes, and an id from 0 to '
        'less than that number')
  identity = dict(process_id=process_id, num_processes=num_processes,
                  host=socket.gethostname())
  meet = _gather if process_id == 0 else _report
  with contextlib.ExitStack() as stack:
    peers, hosts = meet(host, int(port), identity,
                        time.monotonic() + start_timeout_seconds, stack)
    stack.pop_all()    # keeps the connections open as long as the process lives
  jax.distributed.initialize(
      coordinator, num_processes, process_id, cluster_detection_method='deactivate',
      initialization_timeout=int(start_timeout_seconds),
      heartbeat_timeout_seconds=_DEAD_SECONDS)
  platforms.check()    # no process can go on before all have asked for devices
  if process_id:
    logging.set_verbosity(logging.WARNING)    # the first one's log is enough
  watch = _Watch(peers, hosts)
  try:
    yield
  except interrupt.Interrupted:    # all processes know of it (`agreement`)
    watch.part()
    raise
  except Exception as e:
    watch.tell(f'process {process_id} on {identity["host"]} failed: {e}')
    raise
  watch.part()


def _gather(host: str, port: int, identity: Mapping[str, Any], deadline: float,
            stack: contextlib.ExitStack) -> tuple[dict[int, _Peer], dict[int, str]]:
  """Waits, in process 0, for all others.  -> connections, and names of the hosts."""
  where, count = f'{host}:{port}', identity['num_processes']
  peers, hosts = {}, {0: identity['host']}
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
    connected = ', '.join(f'{i} on {name}' for i, name in sorted(hosts.items()))
    return (f'of {count} processes these did not connect to {where}: {ids} '
            f'(connected: {connected})')

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
        peer, other = _accept(server, stack)
        if other is None:    # not a process of ours
          continue
        if other['num_processes'] != count or other['process_id'] in hosts:
          fail(f'process {other["process_id"]} of {other["num_processes"]} on '
               f'{other["host"]} connected to {where}; expected one of {count}, not '
               f'{", ".join(map(str, sorted(hosts)))} (already connected)', peer)
        peers[other['process_id']] = peer
        hosts[other['process_id']] = other['host']
  for peer in peers.values():
    peer.send(hosts=hosts)
  return peers, hosts


def _accept(server: socket.socket, stack: contextlib.ExitStack
            ) -> tuple[_Peer, dict[str, Any] | None]:
  connection, _ = server.accept()
  peer = stack.enter_context(contextlib.closing(_Peer(connection)))
  connection.settimeout(5)
  identity = peer.receive()
  connection.settimeout(None)
  return peer, identity if identity and 'num_processes' in identity else None


def _report(host: str, port: int, identity: Mapping[str, Any], deadline: float,
            stack: contextlib.ExitStack) -> tuple[dict[int, _Peer], dict[int, str]]:
  """Reports, in any other process, to process 0, and waits until all have reported."""
  silent = (f'--coordinator={host}:{port}: does not answer; is process 0 running '
            f'there, and can {identity["host"]} reach it?')
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
  peer.send(**identity)
  while True:
    message = peer.receive() or dict(
        error=f'--coordinator={host}:{port}: process 0 has disconnected')
    if 'error' in message:
      raise UserError(message['error'])
    if 'hosts' in message:
      return {0: peer}, {int(i): name for i, name in message['hosts'].items()}
    logging.warning('Waiting: %s', message['waiting'])


class _Watch:
  """Ends this process when another one fails or disconnects."""

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
    """Reports that this process is done, and waits until the others are."""
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
      self._end(f'process {other} on {self._hosts[other]} has disconnected')
    elif 'error' in message:
      self._end(message['error'])

  def _end(self, why: str) -> NoReturn:
    self._failed.acquire()    # only the first thread reports, others wait here
    self.tell(why)
    print('vatt_jax:', ' '.join(why.split()), '(run the same command on every host to '
          'resume from the newest checkpoint)', file=sys.stderr)
    leave(1)


def leave(status: int, at_once: bool = False) -> NoReturn:
  """Ends the process; one of many skips JAX's shutdown, which all would have to reach.

  Args:
    status: exit status of the process.
    at_once: do not wait for the threads of libraries, which takes many seconds after
      an evaluation. All results must already be written.
  """
  if not at_once and not jax.distributed.is_initialized():
    sys.exit(status)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def is_first() -> bool:
  """Returns whether this is the process that writes the results of all."""
  return jax.process_index() == 0


def from_first(number: int) -> int:
  """Returns process 0's number; all processes must call it."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.broadcast_one_to_all(np.asarray(number, np.int32)))


def all_of(true: bool) -> bool:
  """Returns whether a value is true in every process; all processes must call it."""
  return bool(multihost_utils.process_allgather(np.asarray(true)).all())


@contextlib.contextmanager
def first_alone(unless: bool = False) -> Iterator[None]:
  """Runs the context's body in process 0 first, and then in the others.

  Args:
    unless: this process has nothing to wait for; if it is true in all, none waits.
  """
  if all_of(unless):    # all must agree, since process 0 may still be at work
    yield
    return
  if not is_first():
    multihost_utils.sync_global_devices('first')
  yield
  if is_first():
    multihost_utils.sync_global_devices('first')


def agreement() -> Callable[[int], int]:
  """Returns a function that gives all processes the largest number of any of them.

  All processes must call it equally often, and get the same number at the same call.
  The answer lags behind by some calls, so that no process waits for its devices.
  """
  if jax.process_count() == 1:
    return lambda number: number
  mesh = Mesh(np.asarray(jax.devices()), ('devices',))
  split = NamedSharding(mesh, PartitionSpec('devices'))
  largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
  votes: collections.deque[jax.Array] = collections.deque()

  def vote(number: int) -> int:
    local = np.full(jax.local_device_count(), number, np.int32)
    votes.append(largest(jax.make_array_from_process_local_data(split, local)))
    return int(votes.popleft()) if len(votes) > _LAG else 0

  return vote
