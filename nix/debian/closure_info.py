"""nixpkgs' closureInfo: store-paths, and registration as ``nix-store --load-db`` reads it.

It is the builder itself: Nix has written the derivation's attributes as JSON, with what the root paths need.
"""

import json
import os
from pathlib import Path


def main() -> None:
    """Write the output."""
    attributes = json.loads(Path(os.environ["NIX_ATTRS_JSON_FILE"]).read_text())
    out = Path(attributes["outputs"]["out"])
    closure = sorted(attributes["closure"], key=lambda item: str(item["path"]))
    out.mkdir()
    lines: list[object] = []
    for item in closure:
        references = item["references"]
        lines += [item["path"], item["narHash"], item["narSize"], "", len(references), *references]
    (out / "registration").write_text("".join(f"{line}\n" for line in lines))
    (out / "store-paths").write_text("".join(f"{item['path']}\n" for item in closure))


if __name__ == "__main__":
    main()
