# What must hold of an instance. The rules stand in `manifest.nix`; here each problem becomes an assertion, which `toplevel` needs too.
{ config, lib, ... }:
{
  assertions =
    map (message: {
      assertion = false;
      inherit message;
    }) config.seed.manifest.problems
    ++ [
      {
        assertion = !config.boot.isContainer;
        message = "boot.isContainer: true was given, but an instance is a virtual machine with a kernel of its own: remove it";
      }
      {
        # What the host tells a guest, it tells to systemd.
        assertion = lib.versionAtLeast config.systemd.package.version "256";
        message = "systemd.package: version ${config.systemd.package.version} was given, but an instance needs 256 or later: use nixpkgs of NixOS 25.05 or later (inputs.nixpkgs.follows = \"seed/nixpkgs\" does)";
      }
    ];
}
