# What a mistake in a module of an instance says: the instance, the option, what was given and what to write. What stands in `seed.*` is
# looked at by tests/nixos/always/manifest.nix, message by message; here is how it reaches its writer.
{
  lib,
  nixpkgs,
  project,
  sopsNix,
  ...
}:
let
  seed = import (project + "/nixos-modules/lib.nix") { inherit nixpkgs sopsNix; };
  made =
    module:
    seed.mkSeed {
      name = "web";
      inherit module;
    };
  refused = module: throws: {
    expr = (made module).meta;
    inherit throws;
  };
in
{
  "everything that is wrong is said at once" =
    refused
      {
        seed.size = "xxl";
        seed.expose.game = { };
        seed.storage.data = "10";
        services.nginx.enable = true;
        users.users.app.isNormalUser = true;
        users.users.app.isSystemUser = true;
      }
      [
        "seeds.web has 4 problems:"
        "- seed.size: \"xxl\" is no size: write one of xs, s, m, l, xl"
        "- seed.expose.game: \"game\" is no well-known service, and no port was given"
        "- seed.storage.data.size: \"10\" is no size: write a whole number and one of Ki, Mi, Gi, Ti"
        "Exactly one of users.users.app.isSystemUser and users.users.app.isNormalUser must be set."
      ];

  "a name that is no DNS label" = {
    expr =
      (seed.mkSeed {
        name = "my.Web_1";
        module = { };
      }).meta;
    throws = [
      "1 problem:"
      "mkSeed: name: \"my.Web_1\" is no DNS label: write lower-case letters, digits and hyphens"
    ];
  };

  "toplevel fails as meta does" = {
    expr = (made { seed.size = "xxl"; }).toplevel.drvPath;
    throws = [ "seed.size: \"xxl\" is no size: write one of xs, s, m, l, xl" ];
  };

  "an option that does not exist" = refused { seed.sise = "s"; } [ "The option `seed.sise' does not exist" ];
  "an option of an entry that does not exist" = refused { seed.storage.data.path = "/x"; } [
    "The option `seed.storage.data.path' does not exist"
  ];
  "a volume without a size" = refused { seed.storage.data = { }; } [ "seed.storage.data.size" ];
  "a size that is a number" = refused { seed.storage.data = 10; } [
    "seed.storage.data"
    "size: a whole number and one of Ki, Mi, Gi, Ti"
    "10"
  ];
  "a port that no firewall knows" =
    refused
      {
        seed.expose.game.port = 70000;
        networking.firewall.allowedTCPPorts = [ 9090 ];
      }
      [
        "1 problem:"
        "seed.expose.game.port: 70000 is no port: write a number from 1 to 65535"
      ];
  "a port that is neither a number nor a set" = refused { seed.expose.http = true; } [
    "seed.expose.http"
    ''set as { port = 9090; protocol = "tcp"; }''
    "port number, 1 to 65535"
    "true"
  ];
  "what a module without a file gives stands at its instance" = refused { seed.size = 1; } [
    "seed.size"
    "- In `seeds.web': 1"
  ];
  "a port that is text" = refused { seed.expose.http.port = "80"; } [
    "seed.expose.http.port"
    "port number, 1 to 65535"
    "\"80\""
  ];
  "a TPM that is text" = refused { seed.tpm.enable = "yes"; } [
    "seed.tpm.enable"
    "boolean"
    "\"yes\""
  ];
  "an old systemd" =
    refused ({ lib, pkgs, ... }: { systemd.package = lib.mkForce (pkgs.systemd // { version = "255.4"; }); })
      [
        "systemd.package: version 255.4 was given, but an instance needs 256 or later"
        "inputs.nixpkgs.follows = \"seed/nixpkgs\""
      ];
  "a container" = refused { boot.isContainer = true; } [ "boot.isContainer: true was given" ];

  # Nothing reads these but the build of the system; `meta` finds them all the same.
  "the wrong type of an option of NixOS" = refused { services.nginx.virtualHosts.default.root = 80; } [
    "services.nginx.virtualHosts.default.root"
    "is not of type"
    "80"
  ];
  "a missing value deep in an option of NixOS" = refused { services.nginx.virtualHosts.default.listen = [ { port = 80; } ]; } [
    "services.nginx.virtualHosts.default.listen"
    "addr' was accessed but has no value defined"
  ];
  "two definitions that contradict each other" =
    refused
      {
        imports = [ { services.nginx.user = "a"; } ];
        services.nginx.user = "b";
      }
      [
        "services.nginx.user"
        "conflicting definition values"
      ];
  "a mistake in what a condition lets through" =
    refused ({ lib, ... }: { config = lib.mkMerge [ (lib.mkIf true { services.nginx.clientMaxBodySize = 10; }) ]; })
      [
        "services.nginx.clientMaxBodySize"
      ];
  "a mistake in a module that is several" = refused ({ lib, ... }: lib.mkMerge [ { services.nginx.virtualHosts.default.root = 80; } ]) [
    "services.nginx.virtualHosts.default.root"
  ];
  "an option of NixOS that does not exist" = refused { services.ngingx.enable = true; } [
    "The option `services.ngingx' does not exist"
  ];
}
// lib.optionalAttrs (sopsNix != null) {
  "secrets without a TPM" =
    refused
      {
        seed.tpm.enable = false;
        sops.age.keyFile = "/seed/storage/data/key";
        sops.defaultSopsFile = ../published/secrets/api.yaml;
        sops.secrets.api-key = { };
      }
      [ "seed.tpm.enable: false was given, but the secrets of sops are encrypted to the key in the TPM" ];
}
