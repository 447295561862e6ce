"""DeepSpeed, megatron-core and the process groups between them."""
