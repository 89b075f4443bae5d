# Every option of services.seed. What a change restarts, its description says; "an instance" is a tenant's virtual machine.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types literalExpression;
  value = import ./value.nix { inherit lib; };

  # Options that become keys of the agent's configuration.
  seconds =
    least: most: default: description:
    mkOption {
      type = types.ints.between least most;
      inherit default description;
      example = 2 * default;
    };
  size =
    default: example: description:
    mkOption {
      type = value.size;
      inherit default example description;
    };
  program =
    name: description:
    mkOption {
      type = types.package;
      default = pkgs.${name};
      defaultText = literalExpression "pkgs.${name}";
      example = literalExpression "pkgs.${name}.overrideAttrs { patches = [ ./fix.patch ]; }";
      inherit description;
    };
  restartsAll = "Changing it restarts every instance.";
  restartsAgent = "Changing it restarts the agent; no instance is touched.";
  restartsDoors = "Changing it restarts the doors.";
  upgrade = ''
    Upgrading it touches nothing that runs: units name it by a path that stays the same, so each instance takes the new one at its
    next start.
  '';

  kindAlone = types.str // {
    description = ''"auto", "cloud-hypervisor" or "qemu"'';
  };
  # `types.submodule`, but errors say what to write instead of "submodule".
  hypervisor = types.submoduleWith {
    description = ''set as { kind = "qemu"; bootTimeout = 600; }'';
    shorthandOnlyDefinesConfig = true;
    modules = [
      {
        options = {
          kind = mkOption {
            type = types.enum [
              "auto"
              "cloud-hypervisor"
              "qemu"
            ];
            default = "auto";
            example = "cloud-hypervisor";
            description = ''
              What runs the virtual machines. `auto` is Cloud Hypervisor where /dev/kvm can be used, else QEMU, which then emulates.
              If a change makes the agent choose another one, every instance is restarted under it.
            '';
          };
          acceleration = mkOption {
            type = types.enum [
              "auto"
              "kvm"
              "tcg"
            ];
            default = "auto";
            example = "kvm";
            description = ''
              `kvm`, or `tcg`: emulation, which is slow, runs anywhere, and which only QEMU can do. `auto` is KVM if /dev/kvm can be used.
              With `kvm` the agent refuses to start where there is none, and says so. If a change makes the agent choose another one,
              every instance is restarted under it.
            '';
          };
          bootTimeout =
            seconds 5 3600 300
              "Seconds that a guest may take until it says that it is ready; then its start has failed. ${restartsAll}";
          stopTimeout =
            seconds 1 600 90
              "Seconds that a guest may take to power off before it is killed. ${restartsAll}";
        };
      }
    ];
  };
in
{
  imports = [
    ./options-dns.nix
    ./options-quota.nix
  ];

  options.services.seed = {
    enable = lib.mkEnableOption "Seed, which runs what is pushed to it with git as virtual machines";

    package = mkOption {
      type = types.package;
      default = pkgs.callPackage ../../package.nix { };
      defaultText = lib.literalMD "`pkgs.callPackage ./package.nix { }` of the Seed that this module is from";
      example = literalExpression "inputs.seed.packages.\${pkgs.system}.seed";
      description = ''
        Seed itself. Upgrading it restarts the agent and the doors, and no connection is refused meanwhile. Instances go on running,
        unless the new version writes their units differently (its changelog says so): then they are restarted one after the other.
      '';
    };

    domain = mkOption {
      type = value.domain;
      example = "seed.example.org";
      description = ''
        The zone of this host. An instance is `<instance>.<namespace>.<domain>`. Delegate it to this host where the domain is
        registered, with an NS record. ${restartsAll}
      '';
    };

    publicAddresses = mkOption {
      type = types.listOf value.address;
      default = [ ];
      example = [
        "192.0.2.7"
        "2001:db8::7"
      ];
      description = ''
        The addresses under which the world reaches this host. They are what the domain itself, `ns1` and `silo` below it resolve to;
        while the list is empty, these names resolve to nothing. ${restartsAgent}
      '';
    };

    hypervisor = mkOption {
      type = types.coercedTo kindAlone (kind: { inherit kind; }) hypervisor;
      default = { };
      example = "qemu";
      description = ''
        What runs the virtual machines: the word alone (`hypervisor = "qemu"` is `hypervisor.kind = "qemu"`), or the options below.
      '';
    };

    storage = {
      directory = mkOption {
        type = value.directory;
        default = "/var/lib/seed";
        example = "/var/lib/bulk/seed";
        description = ''
          What outlives a reboot: what was asked, repositories, volumes, TPMs, logs. Back it up. It must lie below /var/lib, because
          systemd makes the folders of each instance there; to have it on another disk, mount that disk there. A change moves
          nothing: stop Seed and its instances, move the folder, then switch.
        '';
      };
      volumeGroup = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "data";
        description = ''
          The LVM volume group that volumes are thin volumes of. Not built yet: setting it is refused. Volumes are sparse files below
          `storage.directory`.
        '';
      };
    };

    network = {
      pool4 = mkOption {
        type = value.pool4;
        default = "10.83.0.0/16";
        example = "10.200.0.0/16";
        description = ''
          Where instances get their IPv4 addresses: a private network that is used nowhere else. The first address is the gateway's.
          It gives every instance another address. ${restartsAll}
        '';
      };
      pool6 = mkOption {
        type = value.pool6;
        default = "fd5e:ed00::/64";
        example = "2001:db8:1:2::/64";
        description = ''
          The same for IPv6. With a public network that is routed to this host, instances are reached from everywhere; with a private one
          (`fd…`) they leave under the host's address. ${restartsAll}
        '';
      };
      upstreamDns = mkOption {
        type = types.listOf value.server;
        default = [ ];
        example = [
          "9.9.9.9"
          "[2620:fe::fe]:53"
        ];
        description = ''
          Where instances' questions about other domains go. Empty: the servers in /etc/resolv.conf. Changing it restarts the agent and
          the doors; no instance is touched.
        '';
      };
      natAddresses = mkOption {
        type = types.listOf value.address;
        default = [ ];
        example = [ "10.0.0.5" ];
        description = ''
          Where what is sent to `publicAddresses` arrives, if they are on no interface of this host because a NAT (of a cloud, say) stands
          before it: one for each of a family, in the same order. Public ports that repositories claim need it. ${restartsAgent}
        '';
      };
      reservedPorts = mkOption {
        type = types.listOf value.port;
        default = [ ];
        example = [
          "51820/udp"
          "8080"
        ];
        description = ''
          Ports of the public addresses that no repository may claim, besides those that Seed itself uses and those of
          `services.openssh`. Name here what else this host serves. ${restartsAgent}
        '';
      };
      uidBase = mkOption {
        type = types.ints.between 1000 4294900000;
        default = 1900000000;
        example = 2000000000;
        description = ''
          Each instance runs as a user of its own; this is the first user id. As many follow as there are addresses in `pool4`, at most
          30000. No user of the host may be among them. ${restartsAll}
        '';
      };
    };

    limits = {
      parallelBuilds = mkOption {
        type = types.ints.between 1 64;
        default = 2;
        example = 4;
        description = "How many deployments are evaluated and built at the same time; the others wait in line. ${restartsAgent}";
      };
      evaluationTime = seconds 1 3600 60 "Seconds that an evaluation may take; then the push has failed. ${restartsAgent}";
      evaluationMemory =
        size "2Gi" "4Gi"
          "Memory that an evaluation may take. A NixOS system takes about half of the default. ${restartsAgent}";
      buildTime = seconds 1 86400 3600 "Seconds that a build may take; then the push has failed. ${restartsAgent}";
      generations = mkOption {
        type = types.ints.between 1 100;
        default = 5;
        example = 2;
        description = ''
          How many generations of each namespace are kept from garbage collection. Fewer take less of the disk; what runs is always
          kept. ${restartsAgent}
        '';
      };
      push = size "1Gi" "256Mi" "The largest push that is taken. Changing it restarts the doors.";
      journal =
        size "64Mi" "256Mi"
          "How much of each instance's journal is kept; what is oldest goes first. ${restartsAll}";
      audit =
        size "1Gi" "10Gi"
          "How much of the log of who changed what is kept, at least 128Mi: of more, the oldest files of 64 MiB are removed, which the log says. ${restartsAgent}";
    };

    build = {
      allowAddresses = mkOption {
        type = types.listOf value.network;
        default = [ ];
        example = [ "10.1.2.3" ];
        description = ''
          What evaluations and builds may reach although it is private: a cache or a Git server of yours, or a DNS server in a private
          network. All else that is not public is closed to them. Changing it restarts the agent and the Nix daemon; builds that are
          under way are done again.
        '';
      };
      denyPrivateNetworks = mkOption {
        type = types.bool;
        default = true;
        example = false;
        description = ''
          Whether the Nix daemon, and with it what it builds, is kept from loopback, private and link-local networks
          (`systemctl cat nix-daemon` shows how). A build whose result is known by its hash has the host's network, and a tenant can
          write one; without this it reaches what the host's neighbours trust the host with. It holds for your own builds, too: name
          what they need in `build.allowAddresses`. The servers of `networking.nameservers` are allowed, and systemd-resolved where
          it is enabled; DNS servers that come by DHCP and are private must be named.
        '';
      };
    };

    github = {
      server = mkOption {
        type = value.url;
        default = "https://github.com";
        example = "https://git.example.org";
        description = ''
          What `github:` stands for in what tenants plant: GitHub, or another server with the same addresses. One that is not public must
          be in `build.allowAddresses`. Changing it restarts the agent and the doors.
        '';
      };
      sshServer = mkOption {
        type = types.nullOr value.sshUrl;
        default = null;
        example = "ssh://git@git.example.org:2222";
        description = ''
          What `github:` stands for where a deploy key is used. `null`: `ssh://git@` and the host of `server`. Changing it restarts the
          agent and the doors.
        '';
      };
      webhook = mkOption {
        type = types.nullOr value.url;
        default = null;
        example = "https://hooks.example.org/webhook/github";
        description = ''
          The URL that tenants are told to give to the webhooks of their forges, where a proxy stands before the doors. `null`:
          `https://<domain>/webhook/github` if there is a CA (`acme.directory`), else the same with `http://`. Changing it restarts the
          agent and the doors.
        '';
      };
      fetchEvery = mkOption {
        type = types.ints.between 10 86400;
        default = 600;
        example = 60;
        description = ''
          How often, in seconds, planted repositories from elsewhere are looked at whether or not a webhook comes. Changing it restarts the
          agent and the doors.
        '';
      };
      fetchTime = mkOption {
        type = types.ints.between 10 3600;
        default = 300;
        example = 60;
        description = "How long a fetch may take, in seconds. Changing it restarts the agent and the doors.";
      };
    };

    ssh = {
      port = mkOption {
        type = types.ints.between 1 65535;
        default = 22;
        example = 2222;
        description = ''
          The port of Seed's SSH door, for people and for `git push`. With 22, move the host's own: `services.openssh.ports = [ 2200 ]`.
          `nixos-rebuild switch` leaves sockets that are open as they are: after a change run
          `systemctl stop seed-serve && systemctl restart seed-serve.socket && systemctl start seed-serve`, or reboot.
        '';
      };
      hostKey = mkOption {
        type = types.nullOr value.file;
        default = null;
        example = "/etc/credstore.encrypted/host_ed25519";
        description = ''
          A file with the private key of the SSH door, encrypted for this host with
          `systemd-creds encrypt --name=host_ed25519 KEY FILE`; so a host that is set up again is still the host that people know. The
          key is decrypted by systemd in memory, for the doors alone, and is never in the Nix store. `null`: the door makes a key at its
          first start and keeps it in `storage.directory`. Changing it restarts the doors.
        '';
      };
    };

    dns.listenAddresses = mkOption {
      type = types.listOf value.address;
      default = [ ];
      example = [
        "10.83.0.1"
        "fd5e:ed00::1"
        "192.0.2.7"
      ];
      defaultText = lib.literalMD ''
        `[ ]`, which is every address; with `services.resolved.enable` the first address of `network.pool4` and of `network.pool6`, and
        `publicAddresses`'';
      description = ''
        Where the DNS door listens, at port 53. Needed beside another DNS server on this host: name the gateway's addresses (the first of
        `network.pool4` and of `network.pool6`), which instances ask, and the public ones. After a change run
        `systemctl stop seed-serve && systemctl restart 'seed-serve*.socket' && systemctl start seed-serve`, or reboot.
      '';
    };

    openFirewall = mkOption {
      type = types.bool;
      default = true;
      example = false;
      description = ''
        Whether the firewall lets the world to the doors: SSH (`ssh.port`), DNS (53), webhooks (80) and HTTPS (443). Instances reach DNS
        at their gateway in any case, and what they expose is Seed's own table's to decide, whatever this says. Changing it reloads the
        firewall.
      '';
    };

    operators = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "alice" ];
      description = ''
        Users who may start, stop and restart instances, the agent and the doors with `systemctl`, and read their journals, without being
        root. Verbs of `seed` itself stay root's. They have to log in anew after a change.
      '';
    };

    rollout.drainTime =
      seconds 30 3600 60
        ''
          Seconds that the version before of an instance that rolls goes on once the new one serves, for those that are connected to it or
          were told its address. Names are told for 30 seconds, so it is no less. ${restartsAgent}
        '';

    ingress.enable = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = ''
        Whether ports 80 and 443 of this host go to the instances by name: 443 by the TLS server name, ending in the instance, 80 by Host.
        HAProxy does it, with maps that the agent changes while it runs; the doors for HTTP and HTTPS get what is for the host itself from
        there. Changing it restarts the agent and the doors; then run
        `systemctl restart seed-serve-http.socket seed-serve-https.socket seed-serve`, or reboot. A new HAProxy is started at once, which
        ends connections that are established by way of the old one, and refuses none.
      '';
    };

    acme = {
      email = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "you@example.org";
        description = "Whom the certificate authority may write to. ${restartsDoors}";
      };
      directory = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "https://acme-v02.api.letsencrypt.org/directory";
        description = ''
          The directory of the certificate authority that instances get certificates from, by way of the host, and the host its own, for
          HTTPS at its domain and at `silo` of it. Setting it agrees to the authority's terms. Without it nobody gets any. Changing it
          restarts the agent and the doors.
        '';
      };
      eabKid = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "kid-1";
        description = "For an authority that asks for external account binding: the id of the key. ${restartsDoors}";
      };
      eabKey = mkOption {
        type = types.nullOr value.file;
        default = null;
        example = "/etc/credstore.encrypted/eab_key";
        description = ''
          A file with that key in base64url, encrypted for this host with `systemd-creds encrypt --name=eab_key KEY FILE`. It is decrypted
          by systemd in memory, for the doors alone, and is never in the Nix store. One that is not encrypted, and that the user seed can
          read, is `settings.acme.eab_key_file`. ${restartsDoors}
        '';
      };
      caRoot = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "/etc/seed/ca.pem";
        description = ''
          The certificate (PEM) of whoever signs the authority's own HTTPS, for an authority of your own. ${restartsDoors}
        '';
      };
      perWeek = mkOption {
        type = types.ints.between 1 100000;
        default = 40;
        example = 200;
        description = ''
          How many certificates for new names the authority is asked for in 7 days. Let's Encrypt gives a domain 50. ${restartsAgent}
        '';
      };
      perNamespaceWeek = mkOption {
        type = types.ints.between 1 100000;
        default = 10;
        example = 20;
        description = "How many of these one namespace may have. ${restartsAgent}";
      };
    };

    programs = {
      cloudHypervisor = program "cloud-hypervisor" "Cloud Hypervisor. ${upgrade}";
      qemu = program "qemu_kvm" "QEMU. ${upgrade}";
      vhostDeviceVsock = program "vhost-device-vsock" "The vsock of guests that QEMU runs. ${upgrade}";
      virtiofsd = program "virtiofsd" "What shows a guest its store. ${upgrade}";
      swtpm = program "swtpm" "The TPM of guests. ${upgrade}";
      haproxy = program "haproxy" "What leads ports 80 and 443 to instances, with `ingress.enable`. Upgrading it restarts it.";
    };

    settings = mkOption {
      type = types.attrsOf (
        types.oneOf [
          value.domain
          (types.attrsOf (
            types.oneOf [
              types.bool
              types.int
              types.str
              (types.listOf types.str)
            ]
          ))
        ]
      );
      default = { };
      example = literalExpression ''{ paths.swtpm = "/opt/swtpm/bin/swtpm"; }'';
      description = ''
        The agent's configuration file (/etc/seed/seed.toml), by its own keys: `units/seed.toml` is its manual. The options above write it;
        what stands here wins over them. `seed check-config` reads it when the system is built, so a wrong key never gets to the
        host. Changing it restarts the agent and the doors, and what the key's manual says.
      '';
    };
  };
}
