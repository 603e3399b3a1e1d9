"""From a forward to a program.  `docs/tour.md` leads through it; `docs/decisions/001-graph.md` is the contract.

program   `ir`, `ops`, `dtypes`; asked for by `request`; shown to users by `tensor_names`, `program_text`
forward   entered by `forward`, recorded by `capture` and `recorder` with `captured_tensor`, `handlers`, `normalise`,
          `rewrites`, `aliases`, `control_flow`; where its operators come from and run: `sources`, `annotations`,
          `overlapped_io`; what is refused: `limits`, `unsupported`, `value_reads`
backward  `losses`, `autodiff`; rules: `gradients`, `scatter_gradients`, `custom_gradients`, `traced_gradients`
update    `writes`, `optimizers`; numbers in it: `optimizer_spec`, `loss_scaling`
patterns  `patterns`, `pattern_ops`
"""
