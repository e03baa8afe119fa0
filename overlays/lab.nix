# The small trained model of models/testbed, the text it learned and is measured on, and what measures it.
final: prev: {
  gb10 = prev.gb10 // {
    testbed = builtins.path {
      name = "gb10-testbed";
      path = ../models/testbed;
      # Not the model card, whose words change nothing.
      filter = path: _: baseNameOf path != "README.md";
    };

    inherit (import ../nix/packages/corpus.nix { pkgs = final; }) corpus heldout;

    # The model in NVFP4: what `serve` serves where there is no GPU and no other model.
    demo-model = import ../nix/packages/demo-model.nix { pkgs = final; };

    inherit (import ../nix/apps/quality.nix { pkgs = final; }) quality quality-check;
    speculative = import ../nix/apps/speculative.nix { pkgs = final; };
  };
}
