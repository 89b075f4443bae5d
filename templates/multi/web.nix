# The front: pages from a volume, and everything below /api from the other instance.
{ pkgs, ... }:
{
  seed.expose.https.enable = true;
  seed.expose.http.enable = true;

  seed.storage.data = "1Gi";
  seed.storage.caddy = {
    size = "100Mi";
    mountPoint = "/var/lib/caddy";
    user = "caddy";
    group = "caddy";
  };

  services.caddy = {
    enable = true;
    dataDir = "/var/lib/caddy";
    configFile = pkgs.writeText "Caddyfile" ''
      {
        acme_ca {$SEED_ACME_URL}
      }

      {$SEED_FQDN} {
        handle /api/* {
          # The bare name of an instance of this flake.
          reverse_proxy api:3000
        }
        handle {
          root * /seed/storage/data/www
          file_server
        }
      }
    '';
  };

  systemd.services.caddy.serviceConfig.EnvironmentFile = "/run/seed/env";
}
