# Manifests as Nix writes them: each becomes tests/fixtures/manifest/<name>.json, which the host's reader must accept.
let
  manifest =
    name: settings:
    let
      made = import ../../nixos-modules/instance/manifest.nix ({ inherit name; } // settings);
    in
    assert made.problems == [ ];
    made.meta;
in
{
  # Written by hand, in templates/minimal.
  web =
    ((import ../../templates/minimal/flake.nix).outputs {
      tools = "/tools";
      boot = "/boot";
      root = "/root";
    }).seeds.web.meta;
}
// builtins.mapAttrs manifest {
  smallest = { };

  everything = {
    size = "xl";
    expose = {
      https = { };
      dns = { };
      grpc.port = 9090;
      game = {
        port = 27015;
        protocol = "udp";
      };
      closed = {
        enable = false;
        port = 1;
      };
    };
    storage = {
      data.size = "16Ti";
      cache = {
        size = "500Mi";
        mountPoint = "/tmp/cache";
      };
    };
    domains = [
      "www.example.com"
      "xn--mnchen-3ya.example"
    ];
    shoot = true;
    tpm = false;
  };

  # Every name of the table, as far as they can stand side by side.
  well-known = {
    expose = builtins.removeAttrs (builtins.mapAttrs (_: _: { }) (builtins.fromJSON (builtins.readFile ../../vmconfigs/services.json))) [
      "domain"
      "grpc"
      "submissions"
    ];
    acme = false;
  };
}
