"""`python -m bert_ipu.simulator.poprun`."""

from __future__ import annotations

import sys

from bert_ipu.simulator.poprun.launch import main

if __name__ == "__main__":
    sys.exit(main())
