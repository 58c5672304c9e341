"""What all tests need, those on Slurm and on NFS as well: signals that arrive, here and in all that is started here."""

from __future__ import annotations

import signal

# In the background of a script, or below nohup, some signals are ignored, and in all that is started there.
for number in (signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
