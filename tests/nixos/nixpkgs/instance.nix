# What a module with `seed.*` options becomes: a machine with its firewall, units and files; or an error that says what to write.
{
  lib,
  nixpkgs,
  project,
  sopsNix,
  ...
}:
let
  seed = import (project + "/nixos-modules/lib.nix") { inherit nixpkgs sopsNix; };
  made =
    module:
    seed.mkSeed {
      name = "web";
      inherit module;
    };
  config = module: (made module).config;
  smallest = config { };
in
{
  "an instance of nothing" = {
    expr = (made { }).meta;
    expected = {
      version = 1;
      name = "web";
      system = "x86_64-linux";
      size = "xs";
      expose = { };
      storage = { };
      rollout = "recreate";
      acme = false;
      shoot = false;
      tpm = true;
      domains = [ ];
    };
  };

  "what mkSeed gives" = {
    expr = {
      attributes = lib.attrNames (made { });
      # The same as a module, as a NixOS test takes it.
      again =
        (import (nixpkgs + "/nixos/lib/eval-config.nix") {
          system = "x86_64-linux";
          modules = [ (made { seed.size = "m"; }).module ];
        }).config.seed.manifest.meta.size;
      extra =
        (seed.mkSeed {
          name = "web";
          module = { };
          extraModules = [ { seed.size = "l"; } ];
        }).meta.size;
    };
    expected = {
      attributes = [
        "config"
        "meta"
        "module"
        "toplevel"
      ];
      again = "m";
      extra = "l";
    };
  };

  "package sets, overlays, functions and arguments are no obstacle" = {
    expr =
      (made (
        { pkgs, word, ... }:
        {
          imports = [ { _module.args.word = "s"; } ];
          seed.size = word;
          boot.kernelPackages = pkgs.linuxPackages;
          environment.systemPackages = [ pkgs.ours ];
          nixpkgs.overlays = [ (_: previous: { ours = previous.hello; }) ];
          systemd.services.app.serviceConfig.ExecStart = pkgs.writeShellScript "app" "exit 0";
        }
      )).meta.size;
    expected = "s";
  };

  "a tenant may have a package set of their own" = {
    expr =
      let
        mine =
          { pkgs, ... }:
          {
            nixpkgs.pkgs = import nixpkgs { system = "x86_64-linux"; };
            environment.systemPackages = [ pkgs.hello ];
          };
      in
      (made mine).meta.size;
    expected = "xs";
  };

  "a tenant may say for which platform it is" = {
    expr = (made { nixpkgs.hostPlatform = "aarch64-linux"; }).meta.system;
    expected = "aarch64-linux";
  };

  # --- the machine
  "root is memory, the store is the host's, and there is a kernel" = {
    expr = {
      inherit (smallest.boot) isContainer;
      root = smallest.fileSystems."/".fsType;
      store = { inherit (smallest.fileSystems."/nix/store") device fsType neededForBoot; };
      readOnly = lib.elem "ro" smallest.fileSystems."/nix/store".options;
      kernel = smallest.boot.kernel.enable;
      host = smallest.networking.hostName;
      initrd = smallest.boot.initrd.systemd.enable;
      missing = lib.subtractLists smallest.boot.initrd.kernelModules [
        "virtio_pci"
        "virtio_blk"
        "virtiofs"
        "vmw_vsock_virtio_transport"
      ];
      # Drivers of disks and keyboards that no virtual machine of Seed's has.
      hardware = lib.intersectLists smallest.boot.initrd.availableKernelModules [
        "ahci"
        "nvme"
        "usbhid"
      ];
    };
    expected = {
      isContainer = false;
      root = "tmpfs";
      store = {
        device = "store";
        fsType = "virtiofs";
        neededForBoot = true;
      };
      readOnly = true;
      kernel = true;
      host = "web";
      initrd = true;
      missing = [ ];
      hardware = [ ];
    };
  };

  "what nobody needs is off, and can be switched on" = {
    expr =
      let
        parts = config: {
          inherit (config.documentation) enable;
          nix = config.nix.enable;
          sudo = config.security.sudo.enable;
          mutable = config.users.mutableUsers;
          lvm = config.services.lvm.enable;
        };
      in
      {
        off = parts smallest;
        on = parts (config {
          documentation.enable = true;
          nix.enable = true;
          security.sudo.enable = true;
          users.mutableUsers = true;
          services.lvm.enable = true;
        });
      };
    expected = {
      off = {
        enable = false;
        nix = false;
        sudo = false;
        mutable = false;
        lvm = false;
      };
      on = {
        enable = true;
        nix = true;
        sudo = true;
        mutable = true;
        lvm = true;
      };
    };
  };

  "nothing of Seed's makes NixOS warn" = {
    expr =
      (config {
        seed.expose.https.enable = true;
        seed.expose.ssh.enable = true;
        seed.storage.data = "1Gi";
        seed.shoot.enable = true;
        services.nginx.enable = true;
      }).warnings;
    expected = [ ];
  };

  "the system can be put together" = {
    expr =
      let
        inherit
          (made {
            seed.storage.data = "1Gi";
            seed.shoot.enable = true;
            seed.connect.db = "db";
          })
          toplevel
          ;
      in
      {
        inherit (toplevel) type;
        drv = lib.hasSuffix ".drv" toplevel.drvPath;
      };
    expected = {
      type = "derivation";
      drv = true;
    };
  };

  # --- network
  "exposed ports are open in the firewall, and no others" = {
    expr =
      let
        inherit
          (config {
            seed.expose.https.enable = true;
            seed.expose.dns.enable = true;
            seed.expose.game = {
              port = 9;
              protocol = "udp";
            };
            seed.expose.http.enable = false;
          })
          networking
          ;
      in
      {
        inherit (networking.firewall) enable allowedTCPPorts allowedUDPPorts;
      };
    expected = {
      enable = true;
      allowedTCPPorts = [
        53
        443
      ];
      allowedUDPPorts = [
        9
        53
      ];
    };
  };

  "sshd is there for the host, and no port is open for it" = {
    expr = {
      ports = smallest.networking.firewall.allowedTCPPorts;
      listen = smallest.systemd.sockets.sshd-vsock.listenStreams;
      keys = map (key: key.type) smallest.services.openssh.hostKeys;
      # One for each connection.
      waits = smallest.services.openssh.startWhenNeeded;
    };
    expected = {
      ports = [ ];
      listen = [ "vsock::22" ];
      keys = [ "ed25519" ];
      waits = true;
    };
  };

  "the network comes from the credential, before networkd" = {
    expr = {
      networkd = smallest.systemd.network.enable;
      inherit (smallest.networking) useDHCP;
      resolved = smallest.services.resolved.enable;
      credential = smallest.systemd.services.seed-network.serviceConfig.ImportCredential;
      before = lib.elem "systemd-networkd.service" smallest.systemd.services.seed-network.before;
    };
    expected = {
      networkd = true;
      useDHCP = false;
      resolved = true;
      credential = "network.network.*";
      before = true;
    };
  };

  "neighbours are variables and files" = {
    expr =
      let
        neighbours = config {
          seed.connect.redis = "my-redis";
          seed.connect.main-db = {
            service = "postgres";
            port = 5432;
          };
        };
      in
      {
        shell = lib.filterAttrs (name: _: lib.hasPrefix "SEED_" name) neighbours.environment.variables;
        services = lib.filterAttrs (name: _: lib.hasPrefix "SEED_" name) neighbours.systemd.globalEnvironment;
        redis = neighbours.environment.etc."seed/connect/redis".text;
        db = neighbours.environment.etc."seed/connect/main-db".text;
      };
    expected = rec {
      shell = {
        SEED_REDIS_HOST = "my-redis";
        SEED_MAIN_DB_HOST = "postgres";
      };
      services = shell;
      redis = "my-redis";
      db = "postgres:5432";
    };
  };

  # --- volumes
  "volumes are owned by whom they are for, and are not cleaned" = {
    expr =
      let
        rules =
          (config {
            seed.storage.plain = "1Gi";
            seed.storage.data = {
              size = "1Gi";
              user = "nobody";
              mode = "0700";
            };
            seed.storage.cache = {
              size = "1Gi";
              mountPoint = "/tmp/cache";
            };
          }).systemd.tmpfiles.rules;
      in
      lib.filter (rule: lib.hasInfix "/seed/storage" rule || lib.hasInfix "/tmp/cache" rule) rules;
    expected = [
      "d /seed/storage/data 0700 nobody - -"
      "x /tmp/cache"
    ];
  };

  "mounts are the host's word: no file system of a volume stands in the system" = {
    expr = lib.attrNames (config { seed.storage.data = "1Gi"; }).fileSystems;
    expected = [
      "/"
      "/nix/store"
    ];
  };

  # --- certificates, shoots, TPM
  "lego learns where the directory is before it runs" = {
    expr =
      let
        services =
          (config {
            seed.expose.https.enable = true;
            security.acme.acceptTerms = true;
            security.acme.defaults.email = "you@example.com";
            services.nginx.enable = true;
            services.nginx.virtualHosts."web.example" = {
              enableACME = true;
              forceSSL = true;
            };
          }).systemd.services;
        lego = lib.filterAttrs (name: _: lib.hasPrefix "acme-" name && lib.hasInfix "web.example" name) services;
      in
      {
        all = lib.all (
          service:
          lib.elem "seed-acme.service" service.after
          && lib.elem "-/run/seed/acme.env" (lib.toList (service.serviceConfig.EnvironmentFile or [ ]))
        ) (lib.attrValues lego);
        some = lego != { };
        reads = services.seed-acme.serviceConfig.EnvironmentFile;
      };
    expected = {
      all = true;
      some = true;
      reads = "/run/seed/env";
    };
  };

  "the server of security.acme can be another" = {
    expr =
      (config {
        seed.expose.https.enable = true;
        security.acme.defaults.server = "https://ca.example/directory";
      }).security.acme.defaults.server;
    expected = "https://ca.example/directory";
  };

  "an instance may do without a certificate" = {
    expr =
      (config {
        seed.expose.https.enable = true;
        seed.acme = false;
      }).seed.acme;
    expected = false;
  };

  "seed-shoot is there when it is asked for" = {
    expr =
      let
        has = module: lib.any (package: lib.hasInfix "seed-shoot" (package.name or "")) (config module).environment.systemPackages;
      in
      map has [
        { }
        { seed.shoot.enable = true; }
      ];
    expected = [
      false
      true
    ];
  };

  "the key goes with the TPM" = {
    expr = map (enable: (config { seed.tpm.enable = enable; }).systemd.services ? seed-tpm-identity) [
      true
      false
    ];
    expected = [
      true
      false
    ];
  };
}
// lib.optionalAttrs (sopsNix != null) {
  "sops-nix decrypts with the key in the TPM" = {
    expr =
      let
        inherit
          (config {
            sops.defaultSopsFile = ../published/secrets/api.yaml;
            sops.secrets.api-key = { };
          })
          sops
          systemd
          ;
      in
      {
        inherit (sops.age) keyFile sshKeyPaths;
        plugins = map (plugin: plugin.name) sops.age.plugins != [ ];
        after = lib.elem "seed-tpm-identity.service" systemd.services.sops-install-secrets.after;
        before = lib.elem "sysinit.target" systemd.services.sops-install-secrets.before;
        # Without secrets, there is no such unit.
        without = smallest.systemd.services ? sops-install-secrets;
      };
    expected = {
      keyFile = "/seed/tpm/age-identity";
      sshKeyPaths = [ ];
      plugins = true;
      after = true;
      before = true;
      without = false;
    };
  };
}
