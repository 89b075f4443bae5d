# /run/seed/env: SEED_FQDN, SEED_NAMESPACE, SEED_INSTANCE, and what was asked for (SEED_ACME_URL, SEED_SHOOT_URL).
#
# The host gives its text as the credential `tmpfiles.extra`; systemd-tmpfiles writes it before sysinit.target, which every service comes
# after by itself. One that does without its default dependencies is told here.
{ lib, ... }:
{
  options.systemd.services = lib.mkOption {
    type = lib.types.attrsOf (
      lib.types.submodule (
        { config, ... }:
        let
          read = map (lib.removePrefix "-") (lib.filter lib.isString (lib.toList (config.serviceConfig.EnvironmentFile or [ ])));
        in
        {
          config = lib.mkIf (lib.elem "/run/seed/env" read) { after = [ "systemd-tmpfiles-setup.service" ]; };
        }
      )
    );
  };
}
