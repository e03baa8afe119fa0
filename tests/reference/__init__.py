"""An independent forward pass for Qwen3-MoE and Qwen3-Next, in plain float32 torch.

It shares nothing with vLLM but the checkpoint files. It is written for clarity, not speed: one sequence at a
time, no cache, every expert a loop turn.
"""
