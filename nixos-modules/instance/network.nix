# The network: what comes from the host as a credential, which ports are open, and who the neighbours are.
{ config, lib, ... }:
let
  cfg = config.seed;
  # Those that are ports: the others are refused in the words of `seed.expose`.
  ports = lib.filter (one: lib.types.port.check one.port) (lib.attrValues cfg.manifest.meta.expose);
  numbers = protocols: map (one: one.port) (lib.filter (one: lib.elem one.protocol protocols) ports);

  variable = name: "SEED_${lib.toUpper (lib.replaceStrings [ "-" ] [ "_" ] name)}_HOST";
  place = peer: peer.service + lib.optionalString (peer.port != null) ":${toString peer.port}";
  hosts = lib.mapAttrs' (name: peer: lib.nameValuePair (variable name) peer.service) cfg.connect;
in
{
  networking = {
    useNetworkd = lib.mkDefault true;
    # The addresses are the host's to give, and come with the boot.
    useDHCP = lib.mkDefault false;
    # One rule set loaded at once, instead of a program started for each rule.
    nftables.enable = lib.mkDefault true;
    firewall = {
      allowedTCPPorts = numbers [
        "tcp"
        "dns"
        "http"
        "grpc"
      ];
      allowedUDPPorts = numbers [
        "udp"
        "dns"
      ];
      # Whoever scans the network would fill the journal.
      logRefusedConnections = lib.mkDefault false;
    };
  };

  # Answers are the host's, which is the next machine; bare names of instances are completed from its search domain.
  services.resolved = {
    enable = lib.mkDefault true;
    dnssec = lib.mkDefault "false";
    llmnr = lib.mkDefault "false";
  };

  systemd = {
    # Known upstream to hang where a link is configured by address and not by lease; the credential is complete before anything starts.
    network.wait-online.enable = lib.mkDefault false;

    # Turns the credential `network.network.10-seed` into a file of networkd. It sorts before every file of NixOS, so it wins. NixOS leaves
    # the unit of this name out, so it stands here in full, under a name of its own.
    services.seed-network = {
      description = "Network of the host's credential";
      wantedBy = [ "sysinit.target" ];
      before = [
        "network-pre.target"
        "systemd-networkd.service"
        "sysinit.target"
        "shutdown.target"
      ];
      wants = [ "network-pre.target" ];
      conflicts = [ "shutdown.target" ];
      unitConfig.DefaultDependencies = false;
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        ImportCredential = "network.network.*";
        ExecStart = "${config.systemd.package}/lib/systemd/systemd-network-generator";
      };
    };

    # For services; `environment.variables` is for shells.
    globalEnvironment = hosts;
  };

  environment = {
    variables = hosts;
    etc = lib.mapAttrs' (name: peer: lib.nameValuePair "seed/connect/${name}" { text = place peer; }) cfg.connect;
  };
}
