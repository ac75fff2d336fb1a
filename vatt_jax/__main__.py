"""Lists or runs the commands: python -m vatt_jax COMMAND [flags]"""

from __future__ import annotations

import runpy
import sys

from vatt_jax.config import nearest

# Command -> module, and its line in the list of commands.
COMMANDS = {
    'main': ('vatt_jax.main', 'train a config; evaluate or plot a run (--mode)'),
    'check_data': ('vatt_jax.tools.check_data', 'report broken or silent files, speed'),
    'prepare': ('vatt_jax.tools.prepare', 'write ArrayRecord shards for fast reading'),
    'vocabulary': ('vatt_jax.tools.vocabulary', 'make a vocabulary from captions'),
    'import_vatt': ('vatt_jax.weights.vatt_tf2', 'convert a released VATT checkpoint'),
    'import_mmv': ('vatt_jax.weights.mmv', 'convert a released MMV checkpoint'),
    'import_gdt': ('vatt_jax.weights.gdt', 'convert a released GDT, STiCA checkpoint'),
    'cost': ('vatt_jax.tools.cost', 'count parameters and operations of a config'),
    'plan': ('vatt_jax.tools.tpu_plan.plan', 'predict memory and time on a TPU slice')}


def main(argv: list[str]) -> int:
  """Runs a command.

  Args:
    argv: the command's name and its flags.

  Returns:
    The exit status.
  """
  if not argv or argv[0] in ('-h', '--help', 'help'):
    print('usage: python -m vatt_jax COMMAND [flags]    (COMMAND --help lists its '
          'flags)\n')
    for name, (_, line) in COMMANDS.items():
      print(f'  {name:12} {line}')
    return 0
  name = argv[0]
  if name not in COMMANDS:
    print(f'vatt_jax: {name}: unknown command; {nearest(name, COMMANDS)}expected one '
          f'of {", ".join(COMMANDS)}', file=sys.stderr)
    return 2
  module, _ = COMMANDS[name]
  sys.argv = [f'python -m vatt_jax {name}', *argv[1:]]
  runpy.run_module(module, run_name='__main__', alter_sys=True)
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
