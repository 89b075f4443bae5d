# A microVM with a secret. `api.nix` says what is in it; this says that there is one.
{
  description = "An API with a secret that only its TPM can decrypt";

  inputs.seed.url = "github:loomtex/seed";
  inputs.nixpkgs.follows = "seed/nixpkgs";

  outputs = { seed, ... }: {
    seeds.api = seed.lib.mkSeed {
      name = "api";
      module = ./api.nix;
    };
  };
}
