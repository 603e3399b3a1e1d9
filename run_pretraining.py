"""Pretrain BERT: python run_pretraining.py --config NAME_OR_PATH [section.key=value ...]."""
from __future__ import annotations

import argparse
import signal
import sys
from typing import Optional, Sequence

from bert_ipu.backend import activate
from bert_ipu.config import PretrainConfig, describe_settings, load_config
from bert_ipu.errors import UserError

INTERRUPTED = 128 + signal.SIGINT
"""Exit status of a program that Ctrl-C ended, as shells have it."""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Parse, build, train; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="run_pretraining.py", description="Pretrain BERT on IPUs or in the simulator.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Settings, to be overridden as section.key=value:\n" + describe_settings(PretrainConfig))
    add = parser.add_argument
    add("--config", default="demo", help="name in configs/pretraining, or path of a YAML or JSON file")
    add("--compile-only", action="store_true", help="compile for the configured IPUs and stop")
    add("--resume", action="store_true", help="go on from the newest checkpoint of train.output_dir")
    add("overrides", nargs="*", metavar="section.key=value", help="change a setting")
    arguments = parser.parse_intermixed_args(argv)
    try:
        config = load_config(PretrainConfig, arguments.config, arguments.overrides)
        backend = activate(config.ipu, arguments.compile_only)
        from bert_ipu import train  # imports poptorch, which now has its meaning

        train.pretrain(config, backend, arguments.resume, arguments.compile_only)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; --resume goes on from the newest checkpoint, if one was saved", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
