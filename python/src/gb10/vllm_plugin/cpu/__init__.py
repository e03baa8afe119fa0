"""What vLLM's CPU platform lacks: NVFP4 linear and MoE layers."""
