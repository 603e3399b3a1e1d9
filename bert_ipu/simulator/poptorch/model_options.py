"""The options of one model: its own copy of the user's, checked and with the output mode decided."""

from __future__ import annotations

from ..errors import poptorch_error
from .enums import OutputMode
from .options import Options
from .strategies import is_pipelined


def own_options(options: Options | None, training: bool) -> Options:
    """A model's copy of the options, which are frozen from here on. Raises Error for what no model can be run with."""
    if options is not None and not isinstance(options, Options):
        raise poptorch_error(f"options must be a poptorch.Options, not {options!r}")
    if options is not None:
        options._freeze()
    own = options.clone() if options is not None else Options()
    _check_counts(own)
    if own.defaultOutputMode():
        own.outputMode(OutputMode.Final if training else OutputMode.All)
    if not training and own.Training.gradient_accumulation != 1:
        message = (
            "You must set poptorch.Options().Training.gradientAccumulation to 1 or leave it as its default value (1) "
            "when running a poptorch.inferenceModel()."
        )
        if is_pipelined(own._execution_strategy):
            message += (
                " Use poptorch.Options().deviceIterations to process a sufficient number of batches each run "
                "for pipelined execution instead."
            )
        raise poptorch_error(message)
    for anchor in own.anchored_tensors.values():
        if anchor[1]:
            anchor[2] = OutputMode(own.output_mode)
            anchor[3] = own.output_return_period if anchor[2] == OutputMode.EveryN else anchor[3]
    return own


def _check_counts(options: Options) -> None:
    counts = {
        "deviceIterations": options.device_iterations,
        "replicationFactor": options.replication_factor,
        "Training.gradientAccumulation": options.Training.gradient_accumulation,
    }
    for name, count in counts.items():
        if count < 1:
            raise poptorch_error(f"poptorch.Options().{name}({count}): it must be 1 or more.")
