# Certificates: the ACME clients of `security.acme` use the directory of the host. Others read SEED_ACME_URL from /run/seed/env.
{ config, lib, ... }:
let
  cfg = config.seed;
  used = cfg.acme && config.security.acme.certs != { };
in
{
  options.systemd.services = lib.mkOption {
    # The units of NixOS that run lego are many, and are named differently from release to release.
    type = lib.types.attrsOf (
      lib.types.submodule (
        { name, ... }:
        {
          config = lib.mkIf (used && lib.hasPrefix "acme-" name) {
            after = [ "seed-acme.service" ];
            wants = [ "seed-acme.service" ];
            serviceConfig.EnvironmentFile = [ "-/run/seed/acme.env" ];
          };
        }
      )
    );
  };

  config = {
    # null: what the environment says, below. Where the directory is, is not known before the instance runs.
    security.acme.defaults.server = lib.mkIf cfg.acme (lib.mkDefault null);

    # lego has names of its own for what it reads from the environment.
    systemd.services.seed-acme = lib.mkIf used {
      description = "ACME directory of the host, as lego reads it";
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        EnvironmentFile = "/run/seed/env";
      };
      script = ''printf 'LEGO_SERVER=%s\n' "$SEED_ACME_URL" >/run/seed/acme.env'';
    };
  };
}
