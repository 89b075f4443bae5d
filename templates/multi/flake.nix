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

    # A port of the host's own public addresses that leads to an instance, for what has no TLS or Host to be told apart by. The
    # operator has to allow it (`seed quota set REPO routes=1`); the instance has to expose the port. `ipv6` is the same.
    #
    # ipv4.routes.mqtt = { port = 1883; instance = "api"; };
  };
}
