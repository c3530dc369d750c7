"""The module of a process in which a kernel is killed at a length."""

import os
import signal

from vit_jax import attention
from vit_jax.arena import cells


class Killed(attention.Softmax):
  """As the kernel of a machine that has no memory left ends a process."""

  def __call__(self, q, k, v, *, train=False):
    if q.shape[1] > 4:
      os.kill(os.getpid(), signal.SIGKILL)
    return v * 2


if __name__ == '__main__':
  attention.ATTENTIONS['killed'] = Killed
  cells.main()
