# services.seed: what is wrong is said with the option, what was given, and what to write. A case for each message.
{
  project,
  nixpkgs,
  lib,
  ...
}:
let
  config =
    module:
    (import (nixpkgs + "/nixos/lib/eval-config.nix") {
      system = "x86_64-linux";
      modules = [
        (project + "/nixos-modules/host")
        (
          { pkgs, ... }:
          {
            services.seed = {
              enable = true;
              domain = lib.mkDefault "seed.example";
              publicAddresses = [ "192.0.2.7" ];
              package = pkgs.hello;
            };
            system.stateVersion = "25.05";
          }
        )
        module
      ];
    }).config;

  # What was not said by an assertion or by a warning, of the parts that should be.
  unsaid =
    messages: parts:
    let
      flat = map (lib.replaceStrings [ "\n" ] [ " " ]) messages;
      together = lib.filter (message: lib.all (part: lib.hasInfix part message) parts) flat;
    in
    if together == [ ] then flat else [ ];
  refused = module: parts: {
    expr = unsaid (map (one: one.message) (lib.filter (one: !one.assertion) (config module).assertions)) parts;
    expected = [ ];
  };
  warned = module: parts: {
    expr = unsaid (config module).warnings parts;
    expected = [ ];
  };
  # An error of the type itself.
  noType = seed: path: parts: {
    expr = lib.getAttrFromPath path (config { services.seed = seed; }).services.seed;
    throws = [ "services.seed.${lib.concatStringsSep "." path}" ] ++ parts;
  };
  nixVersion = import (project + "/nixos-modules/host/nix-version.nix") { inherit lib; };
  nixOf =
    version:
    { pkgs, ... }:
    {
      nix.package = pkgs.hello // {
        pname = "nix";
        inherit version;
      };
    };
in
{
  "a domain that is none" = noType { domain = "Seed_Example"; } [ "domain" ] [
    "Seed_Example"
    ''domain name in lower case, as in "seed.example.org"''
  ];
  "a domain that is too long" = noType { domain = lib.concatStringsSep "." (lib.genList (_: "seed") 40); } [ "domain" ] [
    "domain name"
  ];
  "an address that is none" = {
    expr = (config { services.seed.publicAddresses = [ "192.0.2.256" ]; }).services.seed.publicAddresses;
    throws = [
      "services.seed.publicAddresses"
      "192.0.2.256"
      "IP address, as in"
    ];
  };
  "a pool that is no network" = noType { network.pool4 = "10.83.0.0"; } [ "network" "pool4" ] [
    "IPv4 network from /8 to /29"
  ];
  "a pool that is too large" = noType { network.pool4 = "10.0.0.0/7"; } [ "network" "pool4" ] [
    "10.0.0.0/7"
  ];
  "a pool for IPv6 of another length" = noType { network.pool6 = "fd00::/48"; } [ "network" "pool6" ] [
    ''as in "fd5e:ed00::/64"''
  ];
  "a server that is none" = {
    expr = (config { services.seed.network.upstreamDns = [ "dns.example" ]; }).services.seed.network.upstreamDns;
    throws = [
      "services.seed.network.upstreamDns"
      "dns.example"
      "address of a server, as in"
    ];
  };
  "a network that is none" = {
    expr = (config { services.seed.build.allowAddresses = [ "cache.example" ]; }).services.seed.build.allowAddresses;
    throws = [
      "services.seed.build.allowAddresses"
      "cache.example"
      ''IP address or network, as in "192.0.2.7", "10.0.0.0/8" or "2001:db8::/32"''
    ];
  };
  "a reserved port that is none" = {
    expr = (config { services.seed.network.reservedPorts = [ "8080/sctp" ]; }).services.seed.network.reservedPorts;
    throws = [
      "services.seed.network.reservedPorts"
      "8080/sctp"
      ''port with its transport, as in "2200/tcp"''
    ];
  };
  "a URL that is none" = noType { github.server = "github.com"; } [ "github" "server" ] [
    "\"github.com\""
    ''URL without user and query, as in "https://git.example.org"''
  ];
  "a URL of an SSH server without a user" = noType { github.sshServer = "ssh://git.example.org"; } [ "github" "sshServer" ] [
    "ssh://git.example.org"
    ''as in "ssh://git@git.example.org"''
  ];
  "a size without its unit" = noType { limits.push = "1"; } [ "limits" "push" ] [
    "size, a whole number with one of Ki, Mi, Gi, Ti"
  ];
  "a size below nothing" = noType { limits.journal = "-1Gi"; } [ "limits" "journal" ] [
    "-1Gi"
  ];
  "a time out of its range" = noType { hypervisor.bootTimeout = 4; } [ "hypervisor" "bootTimeout" ] [
    "between 5 and 3600"
  ];
  "a port that is none" = noType { ssh.port = 70000; } [ "ssh" "port" ] [
    "70000"
    "between 1 and 65535"
  ];
  "the port 0" = noType { ssh.port = 0; } [ "ssh" "port" ] [
    "between 1 and 65535"
  ];
  "a hypervisor that is none" = noType { hypervisor = "xen"; } [ "hypervisor" "kind" ] [
    ''one of "auto", "cloud-hypervisor", "qemu"''
    "xen"
  ];
  "a hypervisor that is no word" = noType { hypervisor = true; } [ "hypervisor" ] [
    ''set as { kind = "qemu"; bootTimeout = 600; }''
    ''"auto", "cloud-hypervisor" or "qemu"''
    "true"
  ];
  "a directory that is no absolute path" = noType { storage.directory = "seed"; } [ "storage" "directory" ] [
    "absolute path"
  ];
  "a key that would get into the store" = noType { ssh.hostKey = ./host-refused.nix; } [ "ssh" "hostKey" ] [
    "absolute path in double quotes"
  ];

  "LVM, which is not built" = refused { services.seed.storage.volumeGroup = "data"; } [
    ''services.seed.storage.volumeGroup = "data"''
    "not built yet"
    "Remove it"
  ];
  "a directory where systemd makes none" = refused { services.seed.storage.directory = "/srv/seed"; } [
    ''services.seed.storage.directory = "/srv/seed"''
    "below /var/lib"
    "mount the disk"
  ];
  "a run directory elsewhere" = refused { services.seed.settings.paths.run = "/tmp/seed"; } [
    ''services.seed.settings.paths.run = "/tmp/seed"''
    ''Write "/run/seed"''
  ];
  "two servers at the port of SSH" = refused { services.openssh.enable = true; } [
    "services.seed.ssh.port = 22"
    "services.openssh.ports = [ 2200 ]"
  ];
  "two servers at the port of DNS" = refused { services.unbound.enable = true; } [
    "services.seed.dns.listenAddresses = [ ]"
    "services.unbound"
    ''[ "10.83.0.1" "fd5e:ed00::1" "192.0.2.7" ]''
  ];
  "a firewall that throws Seed's table away" =
    refused
      {
        networking.nftables.enable = true;
        networking.nftables.flushRuleset = true;
      }
      [
        "networking.nftables.flushRuleset = true"
        "Write networking.nftables.flushRuleset = false"
      ];
  "no Nix" = refused { nix.enable = false; } [ "Write nix.enable = true" ];
  "a Nix that gives builders root" = refused (nixOf "2.28.5") [
    "nix.package is Nix 2.28.5"
    "CVE-2026-39860"
    "2.28.6, 2.29.3"
    "nixVersions.latest"
  ];
  "builds without a sandbox" = refused { nix.settings.sandbox = "relaxed"; } [
    ''nix.settings.sandbox = "relaxed"''
    "Write nix.settings.sandbox = true"
  ];
  "builds that are not allowed" = refused { nix.settings.allowed-users = [ "@wheel" ]; } [
    "nix.settings.allowed-users"
    ''Write nix.settings.allowed-users = [ "*" ]''
  ];
  "everybody trusted" = refused { nix.settings.trusted-users = [ "*" ]; } [
    "nix.settings.trusted-users"
    ''nix.settings.trusted-users = [ "root" ]''
  ];
  "an old systemd" =
    refused
      (
        { pkgs, ... }:
        {
          systemd.package = lib.mkForce (pkgs.systemd // { version = "255.4"; });
        }
      )
      [
        "systemd 255.4"
        "256 or newer"
      ];
  "an operator who is no user" = refused { services.seed.operators = [ "mallory" ]; } [
    ''services.seed.operators has "mallory"''
    "add the user, or remove the name"
  ];

  "names that will resolve to nothing" = warned { services.seed.publicAddresses = lib.mkForce [ ]; } [
    "services.seed.publicAddresses is empty: seed.example"
    "services.seed.publicAddresses = [ \"192.0.2.7\" ]"
  ];
  "Docker, which drops what is forwarded" = warned { virtualisation.docker.enable = true; } [
    "virtualisation.docker.enable"
    "virtualisation.docker.daemon.settings.ip-forward-no-drop = true"
  ];
  "nothing to warn of" = {
    expr = (config { }).warnings;
    expected = [ ];
  };

  "versions of Nix that give builders root are known" = {
    expr = lib.genAttrs [
      "2.26.3"
      "2.28.5"
      "2.28.6"
      "2.34.4"
      "2.34.5"
      "2.35.0pre1"
      "3.0"
      "2.33.10"
      "2.27.9"
    ] nixVersion.isSafe;
    expected = {
      "2.26.3" = false;
      "2.28.5" = false;
      "2.28.6" = true;
      "2.34.4" = false;
      "2.34.5" = true;
      "2.35.0pre1" = true;
      "3.0" = true;
      "2.33.10" = true;
      "2.27.9" = false;
    };
  };
}
