"""The commands of the lab: what makes the small trained model, and what measures with it."""

from collections.abc import Sequence

from gb10.arguments import Command, run

COMMANDS = {
    "corpus": Command("gb10_lab.text.corpus:run", "Make the training or the held-out text from wheels."),
    "tokenizer": Command("gb10_lab.text.tokenizer:run", "Train the tokenizer."),
    "train": Command("gb10_lab.training.train:run", "Train the model and its draft head, and calibrate it."),
    "compare": Command("gb10_lab.training.compare:run", "Hold a training run against the recorded one."),
    "quantize": Command("gb10_lab.testbed.quantize:run", "Make the NVFP4 checkpoint."),
    "quality": Command("gb10_lab.quality.command:run", "Measure what a number format does to the answers."),
    "speculative": Command(
        "gb10_lab.speculative.command:run", "Measure drafts, and that they change nothing."
    ),
    "kernel-bench": Command("gb10_lab.kernel_bench.command:run", "Measure kernels on this GPU."),
    "kernel-bits": Command("gb10_lab.kernel_bench.bits:run", "Hold the bits of two builds together."),
    "kernel-smoke": Command("gb10_lab.kernel_bench.smoke:run", "Run every kernel once, small and checked."),
    "kernel-prefill": Command("gb10_lab.kernel_bench.prefill:run", "Time the kernels of many tokens."),
    "engine-bench": Command("gb10_lab.engine_bench.command:run", "Measure one configuration of vLLM."),
    "quality-served": Command("gb10_lab.engine_bench.served:run", "Measure the KL of a served model."),
    "serve-check": Command("gb10_lab.engine_bench.serve_check:run", "Serve a model, from start to end."),
    "engine-compare": Command("gb10_lab.engine_bench.command:compare", "Set such runs beside each other."),
    "shape": Command("gb10_lab.engine_bench.shape:run", "Make a full-size model's folder, without weights."),
    "two-nodes": Command("gb10_lab.two_nodes.command:run", "Serve on two nodes, and break things."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    return run("python -m gb10_lab", "The small trained model of gb10, and measuring.", COMMANDS, argv)
