# The laboratory, the small trained model of models/testbed, the text it learned and is measured on, and what measures it.
final: prev: {
  gb10 = prev.gb10 // {
    # What the lab builds on of gb10. A change of what serves changes nothing here.
    library = import ../nix/packages/gb10-library.nix { pkgs = final; };
    lab = import ../nix/packages/gb10-lab.nix { pkgs = final; };

    # The CPU environment with the lab and what draws plots.
    lab-env = final.gb10.environment {
      name = "gb10-lab-env";
      description = "vLLM for the CPU with the laboratory, as a virtual environment";
      wheels = final.gb10.wheels.report // final.gb10.wheels.cpu;
      extra = [
        final.gb10.library
        final.gb10.lab
      ];
      isolated = true;
    };

    # Not the model card, whose words change nothing.
    testbed = import ../nix/packages/testbed.nix { pkgs = final; };

    inherit (import ../nix/packages/corpus.nix { pkgs = final; }) corpus heldout;

    # The model in NVFP4: what `serve` serves where there is no GPU and no other model.
    demo-model = import ../nix/packages/demo-model.nix { pkgs = final; };

    quality = import ../nix/apps/quality.nix { pkgs = final; };
    speculative = import ../nix/apps/speculative.nix { pkgs = final; };
  };
}
