# A microVM with a certificate. `web.nix` says what is in it; this says that there is one.
{
  description = "A site with a certificate: Caddy in front of an application";

  inputs.seed.url = "github:loomtex/seed";
  inputs.nixpkgs.follows = "seed/nixpkgs";

  outputs = { seed, ... }: {
    seeds.web = seed.lib.mkSeed {
      name = "web";
      module = ./web.nix;
    };
  };
}
