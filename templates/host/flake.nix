# A machine that runs Seed.
{
  description = "A Seed host: a NixOS machine that runs what is pushed to it";

  inputs.seed.url = "github:loomtex/seed";
  inputs.nixpkgs.follows = "seed/nixpkgs";

  outputs =
    { seed, nixpkgs, ... }:
    {
      nixosConfigurations.seed = nixpkgs.lib.nixosSystem {
        modules = [
          seed.nixosModules.host
          ./configuration.nix
        ];
      };
    };
}
