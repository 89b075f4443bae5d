# What must hold on a host, each with what to write. Types of single options are in value.nix; what is wrong inside of the agent's
# configuration, the binary says when the system is built.
{
  config,
  lib,
  ...
}:
let
  cfg = config.services.seed;
  nix = config.nix;
  nixVersion = import ./nix-version.nix { inherit lib; };
  # What is named by hand, with its version where it has one that is known.
  nixIsKnown = (nix.package.pname or "nix") != "lix" && builtins.match "[0-9]+\\.[0-9]+.*" (lib.getVersion nix.package) != null;

  # Other servers of this host that want port 53 of an address of their own, which "every address" includes.
  dnsServers = lib.filter (name: config.services.${name}.enable or false) [
    "adguardhome"
    "bind"
    "blocky"
    "coredns"
    "dnsmasq"
    "knot"
    "kresd"
    "nsd"
    "pihole-ftl"
    "powerdns"
    "technitium-dns-server"
    "unbound"
  ];
  sshd = config.services.openssh;

  refuse = message: {
    assertion = false;
    inherit message;
  };
  demand = assertion: message: { inherit assertion message; };
in
{
  config = lib.mkIf cfg.enable {
    assertions = [
      (demand (cfg.storage.volumeGroup == null) ''
        services.seed.storage.volumeGroup = "${toString cfg.storage.volumeGroup}": volumes on LVM are not built yet. Remove it: volumes
        are then sparse files below services.seed.storage.directory, and stay where they are when LVM comes.'')
      (demand (lib.hasPrefix "/var/lib/" cfg.settings.storage.directory) ''
        services.seed.storage.directory = "${cfg.settings.storage.directory}": it must lie below /var/lib, because systemd makes
        the folders of each instance there. Write "/var/lib/seed", and mount the disk that you mean at it.'')
      (demand (lib.hasPrefix "/run/" cfg.settings.paths.run) ''
        services.seed.settings.paths.run = "${cfg.settings.paths.run}": it must lie below /run, where systemd makes it. Write
        "/run/seed".'')
      (demand (!(sshd.enable && lib.elem cfg.settings.ssh.port sshd.ports)) ''
        services.seed.ssh.port = ${toString cfg.settings.ssh.port}: services.openssh listens there, too. Move the host's own
        (services.openssh.ports = [ 2200 ], and log in with `ssh -p 2200` from then on), or Seed's (services.seed.ssh.port = 2222).'')
      (demand (cfg.dns.listenAddresses != [ ] || dnsServers == [ ]) ''
        services.seed.dns.listenAddresses = [ ]: port 53 of every address cannot be had beside ${
          lib.concatMapStringsSep ", " (name: "services.${name}") dnsServers
        }. Name the gateway's addresses
        and the public ones, as in services.seed.dns.listenAddresses = [ ${
          lib.concatMapStringsSep " " (address: ''"${address}"'') (
            (import ./gateway.nix { inherit lib; }).gateways cfg.settings.network ++ cfg.settings.network.public_addresses
          )
        } ], and keep the other server from these.'')
      (demand (!(config.networking.nftables.enable && config.networking.nftables.flushRuleset)) ''
        networking.nftables.flushRuleset = true: it would throw away Seed's table, which keeps tenants apart, whenever the
        firewall is loaded anew. Write networking.nftables.flushRuleset = false, and name tables in networking.nftables.tables.'')
      (demand nix.enable ''
        nix.enable = false: Seed builds what is pushed with Nix, by its daemon. Write nix.enable = true.'')
      (demand (!nixIsKnown || nixVersion.isSafe (lib.getVersion nix.package)) ''
        nix.package is Nix ${lib.getVersion nix.package}, which is known to give builders root (CVE-2026-39860), and on a Seed
        host strangers build. Take ${lib.concatStringsSep ", " (lib.attrValues nixVersion.fixed)} or newer in its series, as in
        nix.package = pkgs.nixVersions.latest, or update nixpkgs.'')
      (demand (nix.settings.sandbox or true == true) ''
        nix.settings.sandbox = ${builtins.toJSON (nix.settings.sandbox or true)}: without the sandbox a tenant's build reads and writes what
        its user may of this host. Write nix.settings.sandbox = true.'')
      (demand (lib.elem "*" (nix.settings.allowed-users or [ "*" ])) ''
        nix.settings.allowed-users: evaluations and builds run as users that exist only for them, which no list can name. Write
        nix.settings.allowed-users = [ "*" ]; who can log in can then build.'')
      (demand (!lib.elem "*" (nix.settings.trusted-users or [ ])) ''
        nix.settings.trusted-users has "*": whoever the daemon trusts is root, and evaluations of strangers' flakes would be. Name users,
        as in nix.settings.trusted-users = [ "root" ].'')
      (demand (lib.versionAtLeast (lib.getVersion config.systemd.package) "256") ''
        systemd.package is systemd ${lib.getVersion config.systemd.package}: Seed needs 256 or newer. Use NixOS 25.05 or newer.'')
    ]
    ++ map (
      name:
      refuse ''
        services.seed.operators has "${name}", and there is no users.users."${name}": add the user, or remove the name.''
    ) (lib.filter (name: !config.users.users ? ${name}) cfg.operators);

    warnings =
      lib.optional (cfg.settings.network.public_addresses == [ ]) ''
        services.seed.publicAddresses is empty: ${cfg.settings.domain}, and ns1 and silo below it, will resolve to nothing.
        Write the addresses under which the world reaches this host, as in services.seed.publicAddresses = [ "192.0.2.7" ].''
      ++ lib.optional (config.virtualisation.docker.enable or false) ''
        virtualisation.docker.enable: Docker drops what is forwarded by default, that of Seed's instances too. Add the setting
        "ip-forward-no-drop": true (virtualisation.docker.daemon.settings.ip-forward-no-drop = true), or use Podman.'';
  };
}
