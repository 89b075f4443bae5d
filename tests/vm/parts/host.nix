# A machine that runs Seed, for a test: QEMU emulates the guests, as a virtual machine seldom has KVM of its own.
{
  # What the tenant pushes, whose system has to be in the machine's store: there is no network to fetch it from.
  tenant,
}:
{ pkgs, nodes, ... }:
{
  imports = [ ../../../nixos-modules/host ];

  services.seed = {
    enable = true;
    domain = "seed.example";
    publicAddresses = [ nodes.host.networking.primaryIPAddress ];
    hypervisor = {
      kind = "qemu";
      acceleration = "tcg";
      bootTimeout = 1200;
    };
  };

  virtualisation = {
    cores = 2;
    memorySize = 4096;
    diskSize = 4096;
    writableStore = true;
    additionalPaths = [
      tenant.flake
      pkgs.pkgsStatic.busybox
    ];
  };
  # What cannot be reached is not worth waiting for.
  nix.settings.substituters = pkgs.lib.mkForce [ ];
}
