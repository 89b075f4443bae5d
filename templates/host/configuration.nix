# Put this beside the machine's own hardware-configuration.nix, change what is marked, then:
#
#   nixos-rebuild switch --flake .#seed
#   seed invite new
#
# The second makes the code with which somebody plants a first repository.
{
  imports = [
    # What `nixos-generate-config` found: disks, boot loader, drivers.
    ./hardware-configuration.nix
  ];

  services.seed = {
    enable = true;

    # CHANGE: the zone of this host. Where the domain is registered, make an NS record of it that names this host.
    domain = "seed.example.org";

    # CHANGE: the addresses under which the world reaches this host.
    publicAddresses = [
      "192.0.2.7"
      "2001:db8::7"
    ];

    # A public /64 that is routed to this host makes instances reachable from everywhere over IPv6.
    # network.pool6 = "2001:db8:0:1::/64";
  };

  # Seed's door takes port 22, so that people write `git push seed.example.org:my-app`; the host's own sshd moves.
  services.openssh = {
    enable = true;
    ports = [ 2200 ];
    settings.PasswordAuthentication = false;
  };

  # CHANGE: who may log in, at port 2200.
  users.users.root.openssh.authorizedKeys.keys = [ ];

  system.stateVersion = "25.11";
}
