# services.seed.quota: the most that one namespace may have, unless `seed quota set` gave it something else.
{ lib, ... }:
let
  inherit (lib) mkOption types;
  value = import ./value.nix { inherit lib; };
  refused = "More is refused before anything is stopped; what runs stays. Changing it restarts the agent; no instance is touched.";
  number =
    most: default: description:
    mkOption {
      type = types.ints.between 1 most;
      inherit default;
      example = 2 * default;
      description = "${description} ${refused}";
    };
  size =
    default: example: description:
    mkOption {
      type = value.size;
      inherit default example;
      description = "${description} ${refused}";
    };
in
{
  options.services.seed.quota = {
    instances = number 1000 16 "How many instances a namespace may have.";
    vcpus = number 100000 32 "How many virtual CPUs its instances may have together. The kernel holds its slice to them.";
    memory = size "64Gi" "16Gi" "How much memory its instances may have together. The kernel holds its slice to it, with a gibibyte around each guest.";
    volumes = size "1Ti" "100Gi" "How large its volumes may be together, retired ones included.";
    repository = size "4Gi" "1Gi" "How large its repository may be on the disk.";
    builds = number 64 2 "How many evaluations and builds it may have at once, plans included. A deploy that is one too many waits in line, a plan is refused.";
    logs = size "2Gi" "512Mi" "How much all its journals may take together; an instance counts with `limits.journal`.";
    routes = mkOption {
      type = types.ints.between 0 65535;
      default = 0;
      example = 2;
      description = "How many ports of this host's public addresses it may claim (the outputs `ipv4` and `ipv6` of its flake). `seed quota set REPO routes=2` gives them to one namespace. ${refused}";
    };
  };
}
