# What tenants' builds are run by: the Nix daemon, kept from networks that are not public.
#
# The agent starts evaluations and builds in units of its own, with limits of its own; but what a derivation runs is a child of the
# daemon. Nix closes its network, unless the result's hash is known beforehand: then the builder has the host's. A tenant can write
# such a derivation, so the daemon's unit must not reach what trusts this host: loopback, its neighbours, the cloud's metadata.
{ config, lib, ... }:
let
  cfg = config.services.seed;
in
{
  config = lib.mkIf (cfg.enable && cfg.build.denyPrivateNetworks) {
    # As the agent has it for evaluations: src/build/nix.rs. A packet is let through if an allowed network is a closer match.
    systemd.services.nix-daemon.serviceConfig = {
      IPAddressDeny = [
        "localhost"
        "link-local"
        "multicast"
        "0.0.0.0/8"
        "10.0.0.0/8"
        "100.64.0.0/10"
        "172.16.0.0/12"
        "192.168.0.0/16"
        "fc00::/7"
      ];
      # Without names nothing can be fetched.
      IPAddressAllow =
        cfg.settings.build.allow_addresses
        # Without an interface (fe80::1%eth0) and the name of a certificate (192.0.2.53#dns.example.org).
        ++ map (server: lib.head (builtins.match "([^%#]+).*" server)) config.networking.nameservers
        ++ lib.optionals config.services.resolved.enable [
          "127.0.0.53"
          "127.0.0.54"
        ];
    };
  };
}
