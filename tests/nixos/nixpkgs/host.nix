# services.seed: what it makes of a machine.
{
  project,
  nixpkgs,
  lib,
  ...
}:
let
  system =
    module:
    import (nixpkgs + "/nixos/lib/eval-config.nix") {
      system = "x86_64-linux";
      modules = [
        (project + "/nixos-modules/host")
        (
          { pkgs, ... }:
          {
            services.seed = {
              enable = true;
              domain = "seed.example";
              publicAddresses = [ "192.0.2.7" ];
              package = pkgs.hello;
            };
            system.stateVersion = "25.05";
          }
        )
        module
      ];
    };
  config = module: (system module).config;
  plain = config { };

  unit = config: name: config.systemd.units.${name}.text;
  # The values of a key in the part of a unit that NixOS writes.
  values =
    key: text:
    map (lib.removePrefix "${key}=") (lib.filter (lib.hasPrefix "${key}=") (lib.splitString "\n" text));
  texts =
    arguments:
    import (project + "/nixos-modules/host/unit-texts.nix") (
      {
        inherit lib;
        seed = "/nix/store/x/bin/seed";
      }
      // arguments
    );
  file = name: builtins.readFile (project + "/units/${name}");
in
{
  "it does nothing until it is enabled" = {
    expr =
      let
        off = config { services.seed.enable = lib.mkForce false; };
      in
      [
        (off.systemd.services ? seed-agent)
        (off.users.users ? seed)
        (off.environment.etc ? "seed/seed.toml")
        off.boot.kernel.sysctl."net.ipv4.conf.all.forwarding"
      ];
    expected = [
      false
      false
      false
      false
    ];
  };

  "units are those of the repository but for the program" = {
    expr = lib.mapAttrs (name: text: lib.replaceStrings [ "/nix/store/x/bin/seed" ] [ "/usr/bin/seed" ] text == file name) (
      texts { }
    );
    expected = lib.genAttrs [
      "seed-agent.service"
      "seed-ingress.service"
      "seed-ingress.socket"
      "seed-recover.service"
      "seed-serve.service"
      "seed-serve.socket"
      "seed-serve-acme.socket"
      "seed-serve-http.socket"
      "seed-serve-https.socket"
      "seed-serve-dns-tcp.socket"
      "seed-serve-dns-udp.socket"
    ] (_: true);
  };

  "another place of the state is in every unit" = {
    expr =
      let
        other = texts {
          state = "/var/lib/bulk/seed";
          run = "/run/other";
        };
        lines =
          key:
          lib.concatMap (name: values key other."seed-${name}.service") [
            "agent"
            "serve"
            "recover"
          ];
      in
      [
        (lines "StateDirectory")
        (lines "RuntimeDirectory")
        (lines "InaccessiblePaths")
      ];
    expected = [
      [
        "bulk/seed"
        "bulk/seed/repos bulk/seed/ssh bulk/seed/dns bulk/seed/acme"
        "bulk/seed/repos"
      ]
      [ "other" ]
      [
        "-/var/lib/bulk/seed/state -/var/lib/bulk/seed/credentials -/var/lib/bulk/seed/volumes -/var/lib/bulk/seed/tpm -/var/lib/bulk/seed/log"
        "-/var/lib/bulk/seed/state -/var/lib/bulk/seed/credentials -/var/lib/bulk/seed/volumes -/var/lib/bulk/seed/tpm -/var/lib/bulk/seed/log"
      ]
    ];
  };

  # A unit with a file in /etc/systemd/system is what a switch stops and starts.
  "no unit of an instance is part of the system" = {
    expr = lib.filter (lib.hasPrefix "seed-") (lib.attrNames plain.systemd.units);
    expected = [
      "seed-agent.service"
      "seed-serve-acme.socket"
      "seed-serve-dns-tcp.socket"
      "seed-serve-dns-udp.socket"
      "seed-serve-http.socket"
      "seed-serve-https.socket"
      "seed-serve.service"
      "seed-serve.socket"
    ];
  };

  "a switch restarts the agent and the doors and closes no socket" = {
    expr = map (name: values "X-StopIfChanged" (unit plain name)) [
      "seed-agent.service"
      "seed-serve.service"
    ];
    expected = [
      [ "false" ]
      [ "false" ]
    ];
  };

  "the programs that units of instances name stay at their paths" = {
    expr =
      let
        paths = (config { }).services.seed.settings.paths;
        stays = [
          "seed"
          "cloud_hypervisor"
          "qemu"
          "virtiofsd"
          "swtpm"
          "vhost_device_vsock"
          "journal_remote"
        ];
        there = name: plain.environment.etc ? ${lib.removePrefix "/etc/" paths.${name}};
      in
      {
        all = lib.all there stays;
        # Where these two run, /etc is hidden.
        others = map (lib.hasPrefix "/nix/store/") [
          paths.nix
          paths.git
        ];
      };
    expected = {
      all = true;
      others = [
        true
        true
      ];
    };
  };

  "the firewall has the doors open, and DNS and ACME for instances" = {
    expr =
      let
        of =
          module:
          let
            firewall = (config module).networking.firewall;
          in
          [
            firewall.allowedTCPPorts
            firewall.allowedUDPPorts
            (lib.mapAttrs (_: taps: [
              taps.allowedTCPPorts
              taps.allowedUDPPorts
            ]) firewall.interfaces)
          ];
      in
      [
        (of { services.seed.ssh.port = 2222; })
        (of {
          services.seed.openFirewall = false;
          networking.nftables.enable = true;
        })
      ];
    expected = [
      [
        [
          53
          80
          443
          2222
        ]
        [ 53 ]
        {
          "seed+" = [
            [
              53
              9876
            ]
            [ 53 ]
          ];
        }
      ]
      [
        [ ]
        [ ]
        {
          "seed*" = [
            [
              53
              9876
            ]
            [ 53 ]
          ];
        }
      ]
    ];
  };

  "a firewall that filters what is forwarded leaves instances to Seed" = {
    expr =
      (config {
        networking.nftables.enable = true;
        networking.firewall.filterForward = true;
      }).networking.firewall.extraForwardRules;
    expected = "iifname \"seed*\" accept\noifname \"seed*\" accept\n";
  };

  "forwarding is on, whatever else NixOS says" = {
    expr = map (name: plain.boot.kernel.sysctl.${name}) [
      "net.ipv4.ip_forward"
      "net.ipv4.conf.all.forwarding"
      "net.ipv6.conf.all.forwarding"
    ];
    expected = [
      true
      true
      true
    ];
  };

  "nobody else gives taps addresses" = {
    expr = [
      (lib.elem "seed*" plain.networking.dhcpcd.denyInterfaces)
      plain.networking.networkmanager.unmanaged
      plain.systemd.network.networks."05-seed".linkConfig
    ];
    expected = [
      true
      [ "interface-name:seed*" ]
      { Unmanaged = true; }
    ];
  };

  "the Nix daemon is kept from what is private" = {
    expr =
      let
        of =
          module:
          let
            service = (config module).systemd.services.nix-daemon.serviceConfig;
          in
          [
            (lib.elem "localhost" (service.IPAddressDeny or [ ]))
            (service.IPAddressAllow or null)
          ];
      in
      [
        (of {
          services.seed.build.allowAddresses = [ "10.1.2.3" ];
          networking.nameservers = [ "192.0.2.53#dns.example.org" ];
        })
        (of { services.resolved.enable = true; })
        (of { services.seed.build.denyPrivateNetworks = false; })
      ];
    expected = [
      [
        true
        [
          "10.1.2.3"
          "192.0.2.53"
        ]
      ]
      [
        true
        [
          "127.0.0.53"
          "127.0.0.54"
        ]
      ]
      [
        false
        null
      ]
    ];
  };

  "beside systemd-resolved the DNS door takes addresses of its own" = {
    expr = values "ListenDatagram" (
      unit (config {
        services.resolved.enable = true;
        services.seed.network.pool4 = "10.9.8.0/24";
      }) "seed-serve-dns-udp.socket"
    );
    expected = [
      ""
      "10.9.8.1:53"
      "[fd5e:ed00::1]:53"
      "192.0.2.7:53"
    ];
  };

  "secrets come as credentials, and the configuration names where systemd puts them" = {
    expr =
      let
        secret = config {
          services.seed = {
            ssh.hostKey = "/etc/credstore.encrypted/host_ed25519";
            dns.transferKey = "/etc/credstore.encrypted/transfer_key";
            acme.eabKey = "/etc/credstore.encrypted/eab_key";
          };
        };
        of = config: {
          loaded = values "LoadCredentialEncrypted" (unit config "seed-serve.service");
          links = lib.length (values "ExecStartPre" (unit config "seed-serve.service"));
          transferKey = config.services.seed.settings.dns.transfer_key;
          eabKey = config.services.seed.settings.acme.eab_key_file;
        };
      in
      {
        with' = of secret;
        without = of plain;
      };
    expected = {
      with' = {
        loaded = [
          "eab_key:/etc/credstore.encrypted/eab_key"
          "host_ed25519:/etc/credstore.encrypted/host_ed25519"
          "transfer_key:/etc/credstore.encrypted/transfer_key"
        ];
        links = 1;
        transferKey = "/run/credentials/seed-serve.service/transfer_key";
        eabKey = "/run/credentials/seed-serve.service/eab_key";
      };
      without = {
        loaded = [ ];
        links = 0;
        transferKey = "";
        eabKey = "";
      };
    };
  };

  "operators have a polkit rule and the journal" = {
    expr =
      let
        with' = config {
          users.users.alice.isNormalUser = true;
          services.seed.operators = [ "alice" ];
        };
      in
      [
        with'.users.groups.seed-operators.members
        (lib.elem "alice" with'.users.groups.systemd-journal.members)
        (lib.hasInfix "seed-operators" with'.security.polkit.extraConfig)
        (plain.users.groups ? seed-operators)
        (lib.hasInfix "seed-operators" plain.security.polkit.extraConfig)
      ];
    expected = [
      [ "alice" ]
      true
      true
      false
      false
    ];
  };

  "folders are those of the repository's tmpfiles.conf" = {
    expr =
      let
        ours = lib.filter (definition: lib.hasInfix "nixos-modules/host" (toString definition.file));
        definitions = module: (system module).options.systemd.tmpfiles.rules.definitionsWithLocations;
        rules = module: lib.concatMap (definition: definition.value) (ours (definitions module));
      in
      [
        (lib.all (rule: lib.hasInfix "${rule}\n" (file "tmpfiles.conf")) (rules { }))
        (lib.length (rules { }))
        (lib.head (rules { services.seed.storage.directory = "/var/lib/other"; }))
      ];
    expected = [
      true
      11
      "d /var/lib/other              0755 root root -"
    ];
  };
}
