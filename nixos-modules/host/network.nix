# What the agent needs of the host's network, and what must keep its hands off.
{ config, lib, ... }:
let
  cfg = config.services.seed;
  nftables = config.networking.nftables.enable;
  # The taps of instances, and the interface of the gateway's addresses, in the words of iptables and of all others.
  taps = if nftables then "seed*" else "seed+";
in
{
  config = lib.mkIf cfg.enable {
    # The agent may not load modules. KVM's is loaded by udev, for the processor that there is.
    boot.kernelModules = [
      "tun"
      "nf_tables"
    ];

    # The agent turns forwarding on itself. NixOS turns it off by default, also in the middle of a switch.
    boot.kernel.sysctl = {
      "net.ipv4.ip_forward" = lib.mkOverride 90 true;
      "net.ipv4.conf.all.forwarding" = lib.mkOverride 90 true;
      "net.ipv6.conf.all.forwarding" = lib.mkOverride 90 true;
      # A kernel that forwards ignores router advertisements, unless it is told (2) to go on taking them. Taps take none: the agent sees
      # to it.
      "net.ipv6.conf.default.accept_ra" = lib.mkDefault 2;
    };

    networking.firewall = {
      allowedTCPPorts = lib.mkIf cfg.openFirewall [
        cfg.settings.ssh.port
        53
        80
        443
      ];
      allowedUDPPorts = lib.mkIf cfg.openFirewall [ 53 ];
      # Instances ask the gateway for names and certificates. What else of the host they reach, which is nothing, Seed's own table decides.
      interfaces.${taps} = {
        allowedTCPPorts = [
          53
          9876
        ];
        allowedUDPPorts = [ 53 ];
      };
      # A firewall that filters what is forwarded leaves that of instances to Seed's own table, which is stricter.
      extraForwardRules = lib.mkIf (nftables && config.networking.firewall.filterForward) ''
        iifname "seed*" accept
        oifname "seed*" accept
      '';
    };

    # Taps get their addresses from the agent, and routes with them.
    networking.dhcpcd.denyInterfaces = [ "seed*" ];
    networking.networkmanager.unmanaged = [ "interface-name:seed*" ];
    systemd.network.networks."05-seed" = {
      matchConfig.Name = "seed*";
      linkConfig.Unmanaged = true;
    };
  };
}
