"""The ``gb10`` command. Each subcommand is imported only when it runs, so that help needs no torch."""

from collections.abc import Sequence

from gb10.arguments import Command, run

COMMANDS = {
    "serve": Command("gb10.serve:run", "Serve a model with an OpenAI-compatible API.", passed_on=True),
    "download": Command(
        "gb10.download.command:run", "Fetch a model of the hub: resumed, verified, with progress."
    ),
    "cluster": Command("gb10.cluster:run", "Serve one model on several hosts.", passed_on=True),
    "recipes": Command(
        "gb10.recipes.command:run", "What is known to be good for a model: list, show, check.", passed_on=True
    ),
    "audit": Command("gb10.audit.command:run", "Print what a decoded token reads of a model, and what fits."),
    "doctor": Command(
        "gb10.doctor.command:run", "Say what of this machine stops a server, and what mends it."
    ),
    "bench": Command("gb10.bench:run", "Measure how fast a server answers, and compare.", passed_on=True),
    "routing": Command("gb10.routing.command:run", "Print what runs where, whose choice it is, and why."),
    "predict": Command("gb10.predict.command:run", "Predict the tokens a second of a GB10."),
    "sparse24": Command(
        "gb10.sparse24.command:run", "Print what keeping 2 of 4 values would drop of a model."
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``gb10`` and return its exit status: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    return run("gb10", "NVFP4 models on vLLM, for the NVIDIA DGX Spark (GB10).", COMMANDS, argv)
