# The machine of somebody who pushes: it asks the host for names, and sends it what is meant for instances.
{ pkgs, nodes, ... }:
let
  host = nodes.host.networking.primaryIPAddress;
  pool = builtins.split "/" nodes.host.services.seed.network.pool4;
in
{
  environment.systemPackages = [
    pkgs.curl
    pkgs.git
  ];
  networking = {
    nameservers = [ host ];
    # DHCP brings others, which know nothing of this test.
    useDHCP = false;
    interfaces.eth1.ipv4.routes = [
      {
        address = builtins.head pool;
        prefixLength = pkgs.lib.toInt (builtins.elemAt pool 2);
        via = host;
      }
    ];
  };
  programs.ssh.extraConfig = ''
    Host seed.example
      StrictHostKeyChecking accept-new
      LogLevel ERROR
  '';
}
