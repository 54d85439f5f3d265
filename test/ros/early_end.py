"""Starts a command, ends it by SIGTERM after a while, and tells how it ended: ``early_end.py SECONDS COMMAND ...``.

A program of its own, for it is run where /dev/shm is the command's alone: what is there at the end is what was left.
"""

import json
import os
import signal
import subprocess
import sys
import time

#: Seconds that the end may take on a busy machine.
PATIENCE = 60

seconds, command = float(sys.argv[1]), sys.argv[2:]
process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
time.sleep(seconds)
process.send_signal(signal.SIGTERM)
try:
    output, _ = process.communicate(timeout=PATIENCE)
except subprocess.TimeoutExpired:
    process.kill()
    output, _ = process.communicate()
    output += f"\nit did not end within {PATIENCE} s"
left = sorted(os.listdir("/dev/shm"))
json.dump({"seconds": seconds, "code": process.returncode, "output": output, "left": left}, sys.stdout)
