"""What runs a program.  `docs/tour.md` leads through it.

run       `engine`, `settings`, `plan`, `outputs`; where tensors are: `variables`, `device`, `allocator`
code      `contexts`, `micro`, `update`, `lowering`, `selection`, `operators`, `optimizer_ops`, `custom`, `instructions`
many      micro-batches and replicas as one: `chunking`, `batching`, `batching_rules`, `replication`
kernels   for several operators: `fusion`, `fused_adam`, `row_kernels`, `losses`, `heads`; loaded by `native`
numbers   `numerics`, `rounding`, `random`, `products`, `half_partials`, `half_convolutions`, `depth_division`,
          `normalisation`, `exceptions`; printed by `tensor_text`
job       of several processes: `collectives`, `heartbeat`
"""
