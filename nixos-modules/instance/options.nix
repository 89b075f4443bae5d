# Every option of an instance. What may stand in them is checked in one place, `manifest.nix`, which says everything that is wrong at once
# and in one voice with the host; so the types here only give a value its shape.
{
  config,
  lib,
  options,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;

  described = type: description: type // { inherit description; };
  # `types.submodule`, but errors say what to write instead of "submodule".
  set =
    description: module:
    types.submoduleWith {
      inherit description;
      shorthandOnlyDefinesConfig = true;
      modules = [ module ];
    };

  sizes = lib.importJSON ../../vmconfigs/sizes.json;
  services = lib.importJSON ../../vmconfigs/services.json;

  row = name: size: "| `${name}` | ${toString size.vcpus} | ${toString size.memoryMiB} MiB |";
  rows = lib.mapAttrsToList row (lib.getAttrs (lib.sort (a: b: weight a < weight b) (lib.attrNames sizes)) sizes);
  weight = name: sizes.${name}.memoryMiB;

  port = described types.int "port number, 1 to 65535";
  size = described types.str "size: a whole number and one of Ki, Mi, Gi, Ti";

  exposed = set ''set as { port = 9090; protocol = "tcp"; }'' (
    { name, ... }:
    {
      options = {
        enable = mkOption {
          type = types.bool;
          default = true;
          example = false;
          description = ''
            Whether the port is open to the world. An entry is open once it is written, so `false` is only needed to close one that
            another module opened.
          '';
        };
        port = mkOption {
          type = types.nullOr port;
          default = services.${name}.port or null;
          defaultText = lib.literalMD "that of the well-known service of this name";
          example = 8443;
          description = "The port, the same inside and outside. Changing it restarts the instance.";
        };
        protocol = mkOption {
          type = described types.str "one of tcp, udp, dns, http, grpc";
          default = services.${name}.protocol or "tcp";
          defaultText = lib.literalMD "that of the well-known service of this name, else `\"tcp\"`";
          example = "udp";
          description = ''
            What travels through it. `dns` opens the port for both TCP and UDP; `http` and `grpc` are TCP whose certificates come from
            Seed: they turn on {option}`seed.acme`.
          '';
        };
        proxyProtocol = mkOption {
          type = types.bool;
          default = false;
          example = true;
          description = ''
            Whether the host's ingress says over each connection who is connected, in version 2 of the PROXY protocol, before anything
            else. The server in the instance has to expect it (`listen 443 ssl proxy_protocol` in nginx); outside of its namespace only the
            ingress reaches the port then, so nobody can claim to be somebody else. On a
            host without ingress nobody outside of the namespace reaches it. Changing it restarts the instance.
          '';
        };
      };
    }
  );

  volume = set ''set as { size = "1Gi"; mountPoint = "/var/lib/app"; }'' (
    { name, ... }:
    {
      options = {
        size = mkOption {
          type = size;
          example = "10Gi";
          description = ''
            How much room there is. It can be raised, which restarts the instance and grows its file system; a smaller size than before is
            refused by the host.
          '';
        };
        mountPoint = mkOption {
          type = described types.str "absolute path";
          default = "/seed/storage/${name}";
          defaultText = lib.literalMD "`/seed/storage/<name>`";
          example = "/var/lib/postgresql";
          description = "Where it is mounted. Changing it restarts the instance; what is on the volume stays.";
        };
        user = mkOption {
          type = types.nullOr types.str;
          default = null;
          example = "postgres";
          description = "Who owns the top of the volume. null leaves it as it is: root's, on a new volume.";
        };
        group = mkOption {
          type = types.nullOr types.str;
          default = null;
          example = "postgres";
          description = "The group of the top of the volume. null leaves it as it is: root's, on a new volume.";
        };
        mode = mkOption {
          type = types.nullOr (described types.str "file mode in octal digits");
          default = null;
          example = "0700";
          description = "The mode of the top of the volume. null leaves it as it is: 0755, on a new volume.";
        };
      };
    }
  );

  cfg = config.seed;
  manifest = import ./manifest.nix {
    inherit (cfg)
      name
      size
      expose
      storage
      connect
      domains
      rollout
      ;
    inherit (pkgs.stdenv.hostPlatform) system;
    # As it was given: what is read from `cfg.acme` is the answer.
    acme = lib.last ([ null ] ++ map (one: one.value) options.seed.acme.definitionsWithLocations);
    shoot = cfg.shoot.enable;
    tpm = cfg.tpm.enable;
    sops = (config.sops.secrets or { }) != { };
    users = lib.attrNames config.users.users;
    groups = lib.attrNames config.users.groups;
  };

  peer = set ''set as { service = "db"; port = 5432; }'' {
    options = {
      service = mkOption {
        type = described types.str "name of an instance";
        example = "db";
        description = "The other instance, as it is named in `seeds.<name>`.";
      };
      port = mkOption {
        type = types.nullOr port;
        default = null;
        example = 5432;
        description = "The port that is meant, if it shall be part of what is written down.";
      };
    };
  };
in
{
  options.seed = {
    name = mkOption {
      type = types.str;
      readOnly = true;
      example = "web";
      description = ''
        The name of the instance, as given to `mkSeed`: its host name, and the first label of
        `<instance>.<namespace>.<domain>`.
      '';
    };

    size = mkOption {
      type = described types.str "one of xs, s, m, l, xl";
      default = "xs";
      example = "m";
      description = ''
        How large the virtual machine is. Changing it restarts the instance.

        | size | vCPUs | memory |
        |---|---|---|
        ${lib.concatStringsSep "\n" rows}
      '';
    };

    expose = mkOption {
      type = types.attrsOf (types.coercedTo port (number: { port = number; }) exposed);
      default = { };
      example = lib.literalExpression ''
        {
          https.enable = true;                        # a well-known name knows its port and protocol
          http = 8080;                                # a port alone
          game = { port = 9090; protocol = "udp"; };  # everything
        }
      '';
      description = ''
        The ports that the world may reach. The firewall of the instance is opened for them too. Everything else is closed to the outside;
        the other instances of the flake are stopped only by the firewall of this one. Changing it restarts the instance.

        Well-known names: ${lib.concatStringsSep ", " (lib.attrNames services)}.
      '';
    };

    storage = mkOption {
      type = types.attrsOf (types.coercedTo size (text: { size = text; }) volume);
      default = { };
      example = lib.literalExpression ''
        {
          data = "1Gi";                                                    # at /seed/storage/data
          caddy = { size = "100Mi"; mountPoint = "/var/lib/caddy"; };
        }
      '';
      description = ''
        Volumes. They outlive restarts and new versions; everything else that an instance writes is gone when it stops. One that is no
        longer declared is kept by the host, and comes back when it is declared again under its name. No service starts before all are
        mounted.
      '';
    };

    connect = mkOption {
      type = types.attrsOf (types.coercedTo (described types.str "name of an instance") (text: { service = text; }) peer);
      default = { };
      example = lib.literalExpression ''
        {
          cache = "redis";
          db = { service = "postgres"; port = 5432; };
        }
      '';
      description = ''
        Other instances of the same flake, under the names by which this one knows them. `db` above becomes the variable
        `SEED_DB_HOST=postgres` of every service and the file `/etc/seed/connect/db` with `postgres:5432`. It opens nothing and is never
        necessary: the bare name of an instance, as in `http://postgres:5432`, resolves everywhere in its namespace.
      '';
    };

    domains = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "www.example.com" ];
      description = ''
        Names of your own that the instance is to have besides its name on the host, at most 16. Each counts once its DNS proves that it is
        yours; a push says which record to set, and `domain list` how it is. Changing it restarts nothing.
      '';
    };

    rollout = mkOption {
      type = described types.str "one of recreate, rolling";
      default = "recreate";
      example = "rolling";
      description = ''
        How a new version takes over. `recreate` stops the old one, then starts the new one. `rolling` starts the new one beside the old
        one, which serves until the new one is ready, and then goes on for those that are connected to it (a minute, or what the host
        has configured). If the new one does not get ready, the old one was never touched. It is for instances without volumes and
        without a TPM, since two machines cannot share them, and needs room for both in the quota.
      '';
    };

    acme = mkOption {
      type = types.nullOr types.bool;
      default = null;
      defaultText = lib.literalMD "whether an exposed port speaks `http` or `grpc`";
      apply = given: if given != null then given else manifest.meta.acme;
      example = true;
      description = ''
        Whether the instance is told where it gets certificates: `SEED_ACME_URL` in `/run/seed/env`, an ACME directory. The ACME clients of
        `security.acme` use it by themselves.
      '';
    };

    shoot.enable = mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = ''
        Whether the instance may fork short-lived virtual machines that see its store paths and its volumes: the command `seed-shoot`, and
        `SEED_SHOOT_URL` in `/run/seed/env`.
      '';
    };

    tpm.enable = mkOption {
      type = types.bool;
      default = cfg.rollout != "rolling";
      defaultText = lib.literalMD "`true`, but not with `seed.rollout = \"rolling\"`";
      example = false;
      description = ''
        Whether the instance has a TPM, and in it the key to which its secrets are encrypted (`/seed/tpm/age-identity`). Without secrets it
        can be switched off, which spares a process on the host and some store paths in the guest.
      '';
    };

    manifest = mkOption {
      type = types.raw;
      internal = true;
      readOnly = true;
      description = "What {file}`manifest.nix` makes of these options: `problems` and `meta`.";
    };
  };

  config.seed.manifest = manifest;
}
