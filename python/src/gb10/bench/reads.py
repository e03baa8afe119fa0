"""What a decoded token reads: as the server says in /metrics, or as `gb10.audit` sums it over the headers."""

from pathlib import Path

from gb10.bench import target
from gb10.bench.table import Reads
from gb10.errors import UserError

_WEIGHTS, _STATE, _CACHE = (
    "gb10_decode_read_bytes",
    "gb10_state_bytes_per_sequence",
    "gb10_kv_bytes_per_token",
)


def of_metrics(text: str, bandwidth: float | None) -> Reads | None:
    """Of the metrics of a `gb10 serve`; None where they do not say it, or are none."""
    from prometheus_client.parser import text_string_to_metric_families

    sums = dict.fromkeys((_WEIGHTS, _STATE, _CACHE), 0.0)
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in sums:
                    sums[sample.name] += sample.value
    except ValueError:
        return None
    if not 0 < sums[_WEIGHTS] < 1e15:
        return None
    return Reads(
        round(sums[_WEIGHTS] + sums[_STATE]), bandwidth, "the server's /metrics", round(sums[_CACHE])
    )


def of_files(folder: Path, bandwidth: float | None, source: str) -> Reads:
    """Of a checkpoint's headers, as it is. Raises UserError for what is none."""
    if not folder.is_dir():
        raise UserError(f"{source} {folder} is no folder; give the one of the model that is served")
    # The audit asks vLLM, which takes seconds to import.
    from gb10.audit.command import read
    from gb10.audit.model import bytes_per_token

    model = read(str(folder))[2]
    return Reads(bytes_per_token(model).step, bandwidth, f"gb10 audit, {source}", model.cache.per_token)


def find(
    found: target.Target, asked: Reads | None, files: Path | None, bandwidth: float | None
) -> Reads | None:
    """The first of: what the user says, his files, the server's metrics, a folder of ours that it serves."""
    if asked is not None:
        return asked
    if files is not None:
        return of_files(files, bandwidth, "--model-files")
    told = of_metrics(target.metrics(found), bandwidth)
    if told is not None:
        return told
    root = Path(found.root) if found.local and found.root else None
    if root is not None and root.is_absolute() and root.is_dir():
        try:
            return of_files(root, bandwidth, "the server's folder")
        except UserError:
            # Not asked for: a model that the audit does not know is measured without it.
            pass
    if bandwidth is not None:
        raise UserError(
            "--bandwidth needs what a token reads, and the server does not say it; give --bytes-per-token or "
            "--model-files FOLDER"
        )
    return None
