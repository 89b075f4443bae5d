# Caddy in front of an application. It gets its certificate by itself, from Seed.
{ pkgs, ... }:
let
  # Stands for yours.
  app = pkgs.writeShellScript "app" ''
    while true; do
      printf 'HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nHello from Seed\n' |
        ${pkgs.busybox}/bin/nc -l -p 3000
    done
  '';
in
{
  seed.expose.https.enable = true; # port 443, with a certificate
  seed.expose.http.enable = true; #  port 80, from where Caddy sends people to 443

  # Certificates, so that a restart does not ask for new ones.
  seed.storage.caddy = {
    size = "100Mi";
    mountPoint = "/var/lib/caddy";
    user = "caddy";
    group = "caddy";
  };

  services.caddy = {
    enable = true;
    dataDir = "/var/lib/caddy";
    # {$NAME} is Caddy's way to read the environment, not Nix's.
    configFile = pkgs.writeText "Caddyfile" ''
      {
        acme_ca {$SEED_ACME_URL}
      }

      {$SEED_FQDN} {
        reverse_proxy localhost:3000
      }
    '';
  };

  # Where SEED_FQDN and SEED_ACME_URL stand.
  systemd.services.caddy.serviceConfig.EnvironmentFile = "/run/seed/env";

  systemd.services.app = {
    wantedBy = [ "multi-user.target" ];
    serviceConfig.ExecStart = app;
    serviceConfig.Restart = "always";
  };
}
