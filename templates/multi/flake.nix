# Two microVMs that find each other by name. They share a namespace, and nothing else.
{
  description = "Two instances that find each other by name";

  inputs.seed.url = "github:loomtex/seed";
  inputs.nixpkgs.follows = "seed/nixpkgs";

  outputs = { seed, ... }: {
    seeds.web = seed.lib.mkSeed {
      name = "web";
      module = ./web.nix;
    };
    seeds.api = seed.lib.mkSeed {
      name = "api";
      module = ./api.nix;
    };
  };
}
